"""What becomes of a row that breaks a rule: the run ends, or the row is left out, mended or kept."""

from typing import Annotated, Any, Literal

from pydantic import Field

from models.contract import Contract

Rule = Literal[
    "missing",
    "wrong_type",
    "empty",
    "roles",
    "turn_order",
    "last_turn",
    "histories",
    "equal_pair",
    "tie",
    "unicode",
    "special_tokens",
    "foreign_marks",
    "too_long",
    "duplicate",
    "near_duplicate",
    "conflict",
    "leak",
    "near_leak",
]
"""Names of the rules, as the fields of `DataRules`."""
Action = Literal["error", "drop", "fix", "keep"]

_Strict = Literal["error", "drop"]
_Lenient = Literal["error", "drop", "keep"]
_Mendable = Literal["error", "drop", "fix"]
_Any = Literal["error", "drop", "fix", "keep"]


class DataRules(Contract):
    """What becomes of a row that breaks a rule; what is left out or mended is counted and listed.

    `error` ends the run, `drop` leaves the row out, `fix` mends it where that is harmless, `keep` takes it as it is.
    Rows that could always be trained on are kept and told of, so that the same file stays the same snapshot.
    """

    missing: _Strict = Field("drop", title="Missing value")
    """A column that is needed is missing or null."""
    wrong_type: _Strict = Field("drop", title="Wrong type")
    """A value is of another type than its column holds, or the row cannot be read at all."""
    empty: _Strict = Field("drop", title="Empty text")
    """A turn, prompt, reply or answer without any text."""
    roles: _Strict = Field("drop", title="Unknown roles")
    """An unknown role, a turn that its role cannot have, or a tool's result that follows no call."""
    turn_order: _Lenient = Field("keep", title="Turns out of order")
    """Two turns of one role in a row, or a system message further on, which some chat templates refuse."""
    last_turn: _Mendable = Field("drop", title="Last turn")
    """The conversation does not end with the assistant's turn, or its prompt not with the user's; `fix` cuts what
    comes after it."""
    histories: _Strict = Field("drop", title="Different histories")
    """Chosen and rejected differ before their last turn."""
    equal_pair: _Strict = Field("drop", title="Equal pair")
    """Chosen and rejected are the same: no preference."""
    tie: _Strict = Field("drop", title="Tie")
    """Annotators or scores say that neither reply is better; ties do not count as rows dropped."""
    unicode: _Mendable = Field("fix", title="Invalid Unicode")
    """Half a surrogate pair, which cannot be stored; `fix` replaces it by U+FFFD."""
    special_tokens: _Any = Field("keep", title="Special tokens")
    """The text holds one of the model's own special tokens, which would end or begin a turn; `fix` removes it."""
    foreign_marks: _Any = Field("keep", title="Foreign template marks")
    """The text holds marks of a chat template, such as `[INST]` or `### Response:`; `fix` removes them."""
    too_long: _Lenient = Field("keep", title="Too long")
    """A row has more tokens than its stage's `max_length`; kept, rows are not measured, and the trainer cuts or drops
    them."""
    duplicate: _Lenient = Field("drop", title="Duplicate")
    """An earlier row of the same source is the same; in a mixture, duplicates are always left out."""
    near_duplicate: _Lenient = Field("keep", title="Near duplicate")
    """An earlier row has mostly the same words (MinHash, estimated Jaccard similarity of at least 0.8)."""
    conflict: _Lenient = Field("keep", title="Conflict")
    """A pair whose reverse occurs earlier; `drop` leaves out the later one."""
    leak: _Lenient = Field("error", title="Leak")
    """A held-out or evaluation prompt that is trained on; `drop` leaves the row out of training."""
    near_leak: _Lenient = Field("keep", title="Near leak")
    """A training row shares a run of 13 words with a held-out or evaluation row; `drop` leaves it out of training."""
    max_dropped: Annotated[float, Field(ge=0, le=1)] = Field(0.1, title="Most rows dropped")
    """Share of a source's rows, duplicates and ties not counted, from 0 to 1; where more are to be dropped, the run
    ends: the source is then rather the wrong one, or wrongly mapped."""

    def of(self, rule: Rule) -> Action:
        """What becomes of a row that breaks a rule."""
        action: Action = getattr(self, rule)
        return action

    @property
    def changed(self) -> dict[str, Any]:
        """The rules that are not the default ones, as JSON data."""
        return self.model_dump(exclude_defaults=True)
