"""What a recipe asks to be measured: on which rows, by which rule, judge and benchmarks."""

from pydantic import Field, model_validator

from models.contract import Contract
from models.rewards import Verifier
from models.sources import DatasetSource, Positive


class EvaluationSet(Contract):
    """A further set of rows, measured like the held-out ones and told apart by name."""

    name: str = Field(min_length=1, max_length=40, pattern=r"^[\w .-]+$", title="Name")
    """What figures call it."""
    prompts: DatasetSource | None = Field(None, title="Prompts")
    """Rows with a prompt and what is expected."""
    preferences: DatasetSource | None = Field(None, title="Preferences")
    """Rows with prompt, chosen and rejected."""
    verifier: Verifier | None = Field(None, title="Verifier")
    """Decides whether a reply is right; default: the held-out prompts' verifier."""

    @model_validator(mode="after")
    def _has_rows(self) -> "EvaluationSet":
        if not (self.prompts or self.preferences):
            raise ValueError(f"the set '{self.name}' has no rows; name prompts or preferences")
        return self


class Judge(Contract):
    """A language model behind an OpenAI-compatible API that says which of two replies is better."""

    model: str = Field(min_length=1, title="Model")
    """Its name at the server that ALIGN_JUDGE_URL points to."""
    criterion: str = Field(
        "Which reply helps the user more? Judge content, not length.", min_length=1, title="Criterion"
    )
    """What it is told to judge by."""
    max_rows: Positive = Field(100, title="Most prompts")
    """Held-out prompts that it compares replies to, the first ones; each costs two requests a comparison, since the
    replies are shown in both orders."""


class Harness(Contract):
    """Tasks of lm-evaluation-harness; needs the extra `harness`."""

    tasks: tuple[str, ...] = Field(min_length=1, title="Tasks")
    """Names of tasks that lm-evaluation-harness has, or that the folder below adds."""
    include_path: str | None = Field(None, title="Folder of task files")
    """Folder with YAML files of further tasks."""
    limit: Positive | None = Field(None, title="Most rows")
    """Rows of each task, the first ones; default: all."""
    num_fewshot: int | None = Field(None, ge=0, title="Shots")
    """Worked examples before each question; default: as the task says."""


class Evaluation(Contract):
    """What every model of the run is measured on: rows that no stage has trained on."""

    prompts: DatasetSource = Field(title="Held-out prompts")
    """Rows with a prompt and its accepted answer or answers."""
    preferences: DatasetSource | None = Field(None, title="Held-out preferences")
    """Rows with prompt, chosen and rejected; needed to check a reward model."""
    max_new_tokens: Positive = Field(256, title="Longest reply in tokens")
    """Greedy replies stop after so many tokens."""
    num_samples: int = Field(4, ge=0, title="Sampled replies per prompt")
    """Replies drawn at temperature 1 for the mean verifiable reward; 0: none."""
    verifier: Verifier = Field(Verifier(), title="What makes a reply right")
    """Decides whether a reply is right; its name alone will do where it needs no options."""
    sets: tuple[EvaluationSet, ...] = Field((), title="Further sets")
    """Further rows to measure on."""
    judge: Judge | None = Field(None, title="Judge")
    """A language model that compares replies with the parent's and the base model's."""
    harness: Harness | None = Field(None, title="lm-evaluation-harness")
    """Public benchmarks to run on every policy."""

    @model_validator(mode="after")
    def _sets_are_distinct(self) -> "Evaluation":
        names = [one.name for one in self.sets]
        if len(set(names)) < len(names):
            raise ValueError(f"two of the sets {names} have one name; rename one")
        return self
