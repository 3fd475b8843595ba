"""What people decided about promotions: `decisions/<alias>/<checkpoint>.json` in the artifact root, replaced whole."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

from pydantic import ValidationError

from models.aliases import Alias
from models.errors import DamagedArtifact, describe_validation
from models.retraining import Decision
from tasks.files import replace_file

APPROVE = "promote/approve"
"""The deployment that asks."""


def read_decision(home: Path, alias: str, checkpoint: str) -> Decision | None:
    """The newest decision about an alias and a checkpoint, made or awaited; none: nobody was asked.

    Raises:
        DamagedArtifact: its file cannot be read.
    """
    path = _file(home, alias, checkpoint)
    try:
        return Decision.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unreadable(path, f"cannot be read ({error.strerror})") from None
    except ValidationError as error:
        raise _unreadable(path, describe_validation(error, "").splitlines()[0]) from None


def write_decision(home: Path, decision: Decision) -> Decision:
    """Write a decision in place of the one before."""
    replace_file(_file(home, decision.alias, decision.checkpoint), decision.model_dump_json(indent=2))
    return decision


def asked_by(home: Path, alias: str, run: str) -> Decision | None:
    """The question about an alias that a flow run puts, or has put.

    Raises:
        DamagedArtifact: the file of a decision about that alias cannot be read.
    """
    found = (read_decision(home, alias, path.stem) for path in sorted(home.glob(f"decisions/{alias}/[!.]*.json")))
    return next((decision for decision in found if decision and decision.asking == run), None)


def awaited(home: Path) -> list[Decision]:
    """The questions that somebody may still answer.

    Raises:
        DamagedArtifact: the file of one cannot be read.
    """
    files = sorted(home.glob("decisions/[!.]*/[!.]*.json"))
    found = [read_decision(home, path.parent.name, path.stem) for path in files]
    return [decision for decision in found if decision and is_open(decision)]


def is_open(decision: Decision) -> bool:
    """Whether somebody may still answer."""
    return decision.state == "held" and datetime.now(UTC) < datetime.fromisoformat(decision.until)


def stands(decision: Decision | None, points_to: Alias | None) -> bool:
    """Whether a question is open, still about what the alias points to now, and can still be answered."""
    if not (decision and is_open(decision) and decision.rival == (points_to and points_to.checkpoint)):
        return False
    return not decision.asking or _is_alive(decision.asking)


def _is_alive(run: str) -> bool:
    """Whether a flow run may still be resumed; one that has ended, or that the server does not know, asks nobody."""
    from prefect import get_client
    from prefect.exceptions import ObjectNotFound

    with get_client(sync_client=True) as client:
        try:
            state = client.read_flow_run(UUID(run)).state
        except ObjectNotFound:
            return False
    return not (state and state.is_final())


def what_to_do(decision: Decision) -> str:
    """How to answer an open question, in a sentence."""
    if decision.asking:
        how = f"resume flow run {decision.asking} ({APPROVE}) to approve or reject it"
    else:
        how = f'`align promote {decision.checkpoint} --alias {decision.alias} --reason "..."` approves it'
    return f"it waits for approval as {decision.alias} until {decision.until}; {how}"


def in_days(days: float) -> str:
    """The time so many days from now: UTC, ISO 8601."""
    return (datetime.now(UTC) + timedelta(days=days)).isoformat(timespec="seconds")


def _file(home: Path, alias: str, checkpoint: str) -> Path:
    return home / "decisions" / alias / f"{checkpoint}.json"


def _unreadable(path: Path, why: str) -> DamagedArtifact:
    return DamagedArtifact(f"{path}: {why}; remove the file, and the next retraining asks anew")
