"""Every error that a user can meet. Each is built from one string, since Prefect stores type and message alone.

AlignError
├── InputError           what was asked for cannot work; nothing was written (exit code 2)
└── StageError           a stage failed while it ran (exit code 1)
    ├── OutOfMemory      the device or the host ran out of memory; retried at a smaller micro-batch
    ├── Killed           somebody killed the training process; retried as it was
    ├── Stopped          the stage was told to stop
    └── DamagedArtifact  files on disk differ from their manifest
"""

from pydantic import ValidationError
from pydantic_core import ErrorDetails


class AlignError(Exception):
    """Base of the errors whose message is meant for the user and shown without a traceback."""


class InputError(AlignError):
    """Recipe, data, model or machine cannot do what was asked: value seen, rule, remedy, place."""


class StageError(AlignError):
    """A stage failed while it ran."""


class OutOfMemory(StageError):
    """The device or the host ran out of memory at the current micro-batch."""


class Killed(StageError):
    """The training process was killed by SIGKILL, and the kernel has not said that it was for want of memory."""


class Stopped(StageError):
    """The stage was told to stop; what it has trained is kept."""


class DamagedArtifact(StageError):
    """A finished folder no longer agrees with its manifest."""


_RULES = {
    "missing": "is missing",
    "string_type": "must be text",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
}
"""What Pydantic's errors ask for, where its own words speak of parsing."""


def describe_validation(error: ValidationError, source: str) -> str:
    """Turn Pydantic's report into one line per problem: `source: key: rule (got value)`."""
    return "\n".join(_describe_problem(problem, source) for problem in error.errors(include_url=False))


def _describe_problem(problem: ErrorDetails, source: str) -> str:
    key = ".".join(str(part) for part in problem["loc"])
    own_words = str(problem["msg"]).removeprefix("Value error, ").replace("Input should", "must", 1)
    message = _RULES.get(problem["type"], own_words)
    seen = problem.get("input")
    shows_value = problem["type"] not in {"missing", "unknown_key", "value_error"} and not isinstance(seen, dict)
    value = f" (got {seen!r})" if shows_value else ""
    return ": ".join(part for part in (source, key, message + value) if part)
