"""What can go wrong with the objects of a remote, and on which kinds of remotes it is tried."""

import pytest

from tasks.remote.objects import ObjectStore

LEASE_SECONDS = 3.0
"""A lease expires so long after its last renewal."""


def alter(objects: ObjectStore, key: str) -> None:
    objects.write(key, objects.read(key)[:-1] + b"?")


def truncate(objects: ObjectStore, key: str) -> None:
    objects.write(key, objects.read(key)[:-1])


DAMAGES = [alter, truncate, ObjectStore.remove]
at_length = pytest.mark.parametrize(
    "objects", [pytest.param("s3", marks=[pytest.mark.slow, pytest.mark.faults]), "file"], indirect=True
)
"""In a folder each time; on the server with all the other faults, for it takes long."""
