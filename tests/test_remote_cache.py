"""The bounded local root: what goes from it, and what stays because somebody has taken it."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tasks.pruned import is_pruned
from tasks.remote.cache import make_room
from tasks.remote.catalogue import refresh
from tasks.remote.remote import Remote
from tasks.remote.sharing import send_missing
from tasks.remote.uses import last_use, take
from tasks.restoring import restore
from tasks.store import ArtifactStore, damage, read_manifest
from tests.folders import FILES, KINDS, family, publish
from tests.remotes import LEASE_SECONDS

EACH = sum(map(len, FILES.values()))
"""Bytes of one folder."""
OTHER_PROCESS = """
import sys
from pathlib import Path
from tasks.remote.objects import ObjectStore
from tasks.remote.remote import Remote
from tasks.remote.uses import take
from tasks.store import ArtifactStore

home, url, *folders = sys.argv[1:]
for folder in folders:
    take(ArtifactStore(Path(home), Remote(ObjectStore(url), 60)), *folder.split(":"))
print("taken", flush=True)
sys.stdin.read()
"""


def bounded(remote: Remote, cache_bytes: int) -> Remote:
    return Remote(remote.objects, LEASE_SECONDS, cache_bytes=cache_bytes)


class Taker:
    """Another process, which takes folders and lives until it is told to end."""

    def __init__(self, store: ArtifactStore, remote: Remote, *paths: Path) -> None:
        folders = [f"{read_manifest(path).kind}:{path.name}" for path in paths]
        self._process = subprocess.Popen(
            [sys.executable, "-c", OTHER_PROCESS, str(store.home), remote.url, *folders],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout and self._process.stdout.readline() == b"taken\n"

    def end(self) -> None:
        """End it."""
        self._process.communicate()


def test_the_least_recently_used_goes_first(here: ArtifactStore, remote: Remote) -> None:
    made = family(here)
    send_missing(here, remote)
    unsent = publish(here, "sft", 1)
    for age, stage in enumerate(("base", "dataset", "reward", "sft", "dpo")):
        mark = here.home / ".cache" / "used" / f"{KINDS.get(stage, 'checkpoint')}-{made[stage].name}"
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
        os.utime(mark, (time.time() - age,) * 2)
    assert make_room(here, bounded(remote, EACH * 4)) == 2 * EACH
    gone = {stage for stage, path in made.items() if is_pruned(path)}
    assert gone == {"dpo", "sft"}
    assert not is_pruned(unsent)
    assert make_room(here, bounded(remote, 0)) == 3 * EACH
    assert not is_pruned(unsent) and damage(unsent) == []


@pytest.mark.parametrize("objects", ["file"], indirect=True)
def test_what_a_process_has_taken_stays_until_it_ends(here: ArtifactStore, remote: Remote) -> None:
    made = family(here)
    send_missing(here, remote)
    readers = [Taker(here, remote, made["dpo"], made["base"]), Taker(here, remote, made["dpo"])]
    assert make_room(here, bounded(remote, 0)) == 3 * EACH
    readers[0].end()
    assert make_room(here, bounded(remote, 0)) == EACH
    assert not is_pruned(made["dpo"])
    readers[1].end()
    assert make_room(here, bounded(remote, 0)) == EACH


@pytest.mark.parametrize("objects", ["file"], indirect=True)
def test_whoever_makes_sure_that_a_folder_is_whole_has_taken_it(
    here: ArtifactStore, there: ArtifactStore, remote: Remote
) -> None:
    made = family(here)
    send_missing(here, remote)
    restore(here, made["sft"], "test", lambda: pytest.fail("nothing is computed"), pytest.fail)
    make_room(here, bounded(remote, 0))
    assert {stage for stage, path in made.items() if not is_pruned(path)} == {"sft"}
    refresh(there, remote)
    path = there.folder("checkpoint", made["dpo"].name)
    os.utime(path / "manifest.json", (0, 0))
    remote.fetch(there, "checkpoint", path.name)
    assert time.time() - last_use(there, "checkpoint", path.name) < 60
    assert make_room(there, bounded(remote, 0)) == 0
    take(there, "checkpoint", path.name)  # twice does no harm
