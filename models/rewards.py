"""What a reply is judged by: rules that a program can verify, reward models, and functions of the user's own.

One flat contract serves the YAML file and the form; which options go with which kind is checked here.
"""

import re
from pathlib import PurePath
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue, field_validator, model_validator

from models.contract import ADVANCED, Contract
from models.trl_options import SOLVED_BY_TRL, TRLReward, check_trl_options

VerifierKind = Literal[
    "exact_answer", "exact_number", "math_verify", "choice", "regex", "format", "length", "instructions"
]
RewardKind = Literal[VerifierKind, "reward_model", "trl", "function"]
Shape = Literal["think", "think_answer", "boxed", "json"]
_OPTIONS: dict[str, tuple[str, ...]] = {
    "column": ("exact_answer", "exact_number", "math_verify", "choice", "trl"),
    "pattern": ("regex",),
    "shape": ("format",),
    "min_words": ("length",),
    "max_words": ("length",),
    "model": ("reward_model",),
    "revision": ("reward_model",),
    "function": ("function",),
    "trl": ("trl",),
    "options": ("trl", "function"),
    "timeout_seconds": ("function",),
    "memory_limit_bytes": ("function",),
    "failures_allowed": ("function",),
}
"""Options, and the kinds that they have an effect on."""
_REQUIRED = {"regex": "pattern", "format": "shape", "trl": "trl", "function": "function"}
"""Kinds, and the option that each cannot do without."""


def has_effect(option: str, kind: str) -> bool:
    """Whether a field of `Reward` or `Verifier` means something for this kind."""
    return kind in _OPTIONS.get(option, (kind,))


class _Rule(Contract):
    """The options of the rules that a program can verify."""

    column: str = Field("answer", min_length=1, title="Expected column", json_schema_extra=ADVANCED)
    """Column of the row that holds what is right: an accepted answer, or a list of them; TRL's functions get the first
    one as `solution`. `instructions` reads `instruction_id_list` and `kwargs`, as IFEval's own file names them."""
    pattern: str | None = Field(None, title="Pattern", json_schema_extra=ADVANCED)
    """For `regex`: a Python regular expression that must be found in the reply."""
    shape: Shape | None = Field(None, title="Shape", json_schema_extra=ADVANCED)
    """For `format`. `think`: thoughts between `<think>` and `</think>`, then the answer; `think_answer`: the answer
    between `<answer>` and `</answer>` as well; `boxed`: a formula in `\\boxed{}`; `json`: nothing but valid JSON."""
    min_words: int | None = Field(None, ge=0, title="Fewest words", json_schema_extra=ADVANCED)
    """For `length`: a reply with fewer words gets the share of them that it has."""
    max_words: Annotated[int, Field(ge=1)] | None = Field(None, title="Most words", json_schema_extra=ADVANCED)
    """For `length`: a reply with more words gets nothing from twice as many on, and in between in proportion."""

    @field_validator("pattern")
    @classmethod
    def _pattern_is_a_regular_expression(cls, value: str | None) -> str | None:
        try:
            re.compile(value or "")
        except re.error as error:
            raise ValueError(f"'{value}' is not a regular expression ({error}); correct it") from None
        return value

    @model_validator(mode="after")
    def _options_have_an_effect(self) -> "_Rule":
        kind = str(getattr(self, "kind", ""))
        for option in self.model_fields_set & _OPTIONS.keys():
            default = type(self).model_fields[option].default
            if kind not in _OPTIONS[option] and getattr(self, option) != default:
                kinds = " or ".join(_OPTIONS[option])
                raise ValueError(f"{option} has no effect on kind '{kind}', only on {kinds}; remove it")
        needed = _REQUIRED.get(kind)
        if needed and getattr(self, needed) is None:
            raise ValueError(f"kind '{kind}' needs {needed}; add it")
        if kind == "length" and self.min_words is None and self.max_words is None:
            raise ValueError("kind 'length' needs min_words or max_words; add one of them")
        if (self.min_words or 0) > (self.max_words or float("inf")):
            raise ValueError(f"min_words {self.min_words} is above max_words {self.max_words}; lower it")
        return self


class Verifier(_Rule):
    """Decides whether a reply is right, as a program can."""

    kind: VerifierKind = Field("exact_answer", title="Kind")
    """`exact_answer`: the reply is an accepted answer; `exact_number`: its final number equals the accepted one's;
    `math_verify`: its last formula does, as mathematics; `choice`: the option that it settles on is the accepted
    letter; `regex`: a pattern is found; `format`: it has a shape; `length`: its words are within bounds;
    `instructions`: IFEval's rules (Zhou et al. 2023, arXiv 2311.07911), whose ids and arguments the row names."""

    def identity(self) -> dict[str, Any]:
        """What decides its verdicts, as JSON data: options that have been added since change no name."""
        return {"kind": self.kind} | self.model_dump(mode="json", exclude_defaults=True)

    @model_validator(mode="before")
    @classmethod
    def _a_name_is_enough(cls, value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value


class Reward(_Rule):
    """One term of GRPO's reward."""

    kind: RewardKind = Field(title="Kind")
    """`reward_model`: this run's reward model, or another one; `trl`: one of TRL's own functions; `function`: a Python
    function of yours; otherwise a verifier, which gives 1 where a reply is right: see the evaluation's."""
    weight: float = Field(1.0, title="Weight")
    """Factor of this term in the sum."""
    name: str | None = Field(None, min_length=1, max_length=60, pattern=r"^[\w .:-]+$", title="Name")
    """What figures and the report call it; default: its kind, or its function's name."""
    model: str | None = Field(None, min_length=1, title="Reward model")
    """For `reward_model`: an alias, a checkpoint's name, a folder, or a hub id; default: this run's own."""
    revision: str | None = Field(None, title="Revision")
    """For `reward_model` from the hub: commit, tag or branch; it is pinned to the commit that it points to."""
    function: str | None = Field(None, title="Function")
    """For `function`: `package.module:name`, or `path/to/file.py:name` (paths start at the recipe), called in a process
    of its own. Takes what TRL's reward functions take (prompts, completions, completion_ids and every column of the
    row, as keywords) and returns one number, or none, a completion; may be `async`."""
    trl: TRLReward | None = Field(None, title="TRL's function")
    """For `trl`: its name in `trl.rewards`; one that is made from options (`get_…`) takes them from below."""
    options: dict[str, JsonValue] = Field({}, title="Options")
    """For `trl` and `function`: keyword arguments that are the same for every completion."""
    timeout_seconds: float = Field(60.0, gt=0, title="Time limit in seconds", json_schema_extra=ADVANCED)
    """For `function`: a call that takes longer is ended, and its completions get nothing from this reward."""
    memory_limit_bytes: int = Field(2_000_000_000, ge=2**26, title="Memory limit in bytes", json_schema_extra=ADVANCED)
    """For `function`: bytes of memory that its process may allocate."""
    failures_allowed: float = Field(0.5, ge=0, le=1, title="Failures allowed", json_schema_extra=ADVANCED)
    """For `function`: share of its calls, from 0 to 1, that may fail, from the fourth call on; more stop the stage."""

    @property
    def label(self) -> str:
        """What figures call it."""
        called = (self.function or "").rpartition(":")[2] or self.trl
        return self.name or called or self.kind

    def without_folders(self) -> "Reward":
        """The same for readers elsewhere: a local file or model by the last part of its path."""
        file = {"function": PurePath(self.function).name} if self.function and "/" in self.function else {}
        model = {"model": PurePath(self.model).name} if self.model and PurePath(self.model).is_absolute() else {}
        return self.model_copy(update=file | model)

    @model_validator(mode="after")
    def _function_names_a_place_and_a_name(self) -> "Reward":
        place, _, name = (self.function or "mine.py:reward").rpartition(":")
        if not place or not name.isidentifier():
            remedy = "write `package.module:name` or `path/file.py:name`"
            raise ValueError(f"function '{self.function}' does not say where and which; {remedy}")
        return self

    @model_validator(mode="after")
    def _revision_needs_a_model(self) -> "Reward":
        if self.revision and not self.model:
            raise ValueError(f"revision '{self.revision}' needs a model from the hub; add model, or remove it")
        return self

    @model_validator(mode="after")
    def _trl_takes_the_options(self) -> "Reward":
        if self.trl:
            check_trl_options(self.trl, self.options)
        if self.trl and self.trl not in SOLVED_BY_TRL and self.column != "answer":
            raise ValueError(f"column has no effect on {self.trl}, which compares with nothing; remove it")
        return self
