"""The files of the aliases in an artifact root: `aliases/<name>.json`, each replaced whole, with its whole history."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock
from pydantic import ValidationError

from models.aliases import Alias, alias_problem
from models.errors import DamagedArtifact, describe_validation
from tasks.files import replace_file


def read_alias(home: Path, name: str) -> Alias | None:
    """The alias of that name; none where there is none, or where it is no name of an alias.

    Raises:
        DamagedArtifact: its file cannot be read.
    """
    path = _file(home, name)
    if alias_problem(name) or not path.exists():
        return None
    try:
        alias = Alias.model_validate_json(path.read_bytes())
    except OSError as error:
        raise _unreadable(path, f"cannot be read ({error.strerror})") from None
    except ValidationError as error:
        raise _unreadable(path, describe_validation(error, "").splitlines()[0]) from None
    if alias.name != name:
        raise _unreadable(path, f"holds the alias '{alias.name}'")
    return alias


def all_aliases(home: Path) -> list[Alias]:
    """All aliases, sorted by name.

    Raises:
        DamagedArtifact: the file of one cannot be read.
    """
    found = [read_alias(home, path.stem) for path in sorted(home.glob("aliases/[!.]*.json"))]
    return [alias for alias in found if alias]


def write_alias(home: Path, alias: Alias) -> None:
    """Write the alias whole, in place of what it was."""
    replace_file(_file(home, alias.name), alias.model_dump_json(indent=2))


@contextmanager
def changing(home: Path, name: str) -> Iterator[None]:
    """Hold the right to change an alias, so that of two changes at once neither is lost."""
    locks = home / ".locks"
    locks.mkdir(parents=True, exist_ok=True)
    with FileLock(locks / f"alias-{name}.lock"):
        yield


def _file(home: Path, name: str) -> Path:
    return home / "aliases" / f"{name}.json"


def _unreadable(path: Path, why: str) -> DamagedArtifact:
    remedy = "put back a copy of the file, or remove it and promote again"
    return DamagedArtifact(f"{path}: {why}; {remedy}")
