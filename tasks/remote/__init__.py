"""An artifact root that several machines share: an object store, behind `tasks.store`; nothing of it without one.

objects.py    requests to the object store, tried again, with errors that people understand
folders.py    folders that count once their list of files is there, sent and fetched with digests
lease.py      the right to make a folder, for one machine at a time
remote.py     finished folders, and trainer checkpoints of unfinished stages
sharing.py    one stage at a time: its lease renewed and its trainer checkpoints sent while it trains
catalogue.py  manifests, aliases, decisions and runs of other machines, known here without their files
uses.py       what processes have taken, and when, so that its files stay here
cache.py      the bounded local root: what is safe in the remote and least recently used goes first
opening.py    the store of the settings, with its remote
"""
