"""Typed inputs of the stages. An input's fingerprint names the folder of what the stage makes.

In the fingerprint is all that changes the weights: stage, version of its code, hyperparameters, seed, precision as
resolved, and the fingerprints of parents and datasets. Not in it: where files are, how the batch is split over devices
and accumulation, retries and logging. A retrained parent has the same fingerprint, so its children stay valid.
"""

from typing import Any, ClassVar, Literal

from models.alarms import Alarms
from models.artifacts import Artifact, Checkpoint, Dataset, Precision, Stage
from models.contract import Contract
from models.evaluation import Estimate
from models.fingerprint import ID_LENGTH, fingerprint
from models.measurement import Evaluation
from models.recipe import DPO, GRPO, SFT, Quantization, RewardModel, Training
from models.rewards import Reward, Verifier
from models.sources import BaseModelSource

_UNTOLD = {"name", "model", "revision", "function", "timeout_seconds", "memory_limit_bytes", "failures_allowed"}
"""Fields of a reward that are no part of what decides the weights, or not in the recipe's words."""


class Request(Contract):
    """Something that can be asked for, known by what decides its content."""

    def identity(self) -> dict[str, Any]:
        """What decides the content, as JSON data."""
        raise NotImplementedError

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the identity."""
        return fingerprint(self.identity())

    @property
    def id(self) -> str:
        """The short form of the fingerprint, which ends the name of the folder that this leads to."""
        return self.fingerprint[:ID_LENGTH]


class BaseModelInput(Request):
    """A source and the precision to keep it in."""

    code_version: ClassVar[int] = 1

    source: BaseModelSource
    """Where the model comes from."""
    origin: dict[str, str]
    """What pins its content, the chat template's included: digests of files, or hub id and commit."""
    precision: Precision
    """Number format of the converted weights."""

    def identity(self) -> dict[str, Any]:
        """What decides the converted model, as JSON data."""
        return {
            "stage": "base",
            "code_version": self.code_version,
            "origin": self.origin,
            "tokens": self.source.model_dump(mode="json", include={"pad_token", "eos_token"}),
            "precision": self.precision,
        }


class TrainingInput(Request):
    """What every training stage needs beside its own hyperparameters."""

    stage: ClassVar[Stage]
    code_version: ClassVar[int]
    """Raise it when a change to the stage's code changes the weights that come out."""

    policy: Checkpoint
    """The model that training starts from."""
    dataset: Dataset
    """The rows to train on."""
    hyperparameters: Training
    """The recipe's section for this stage."""
    seed: int
    """Seed of initialisation, data order and sampling."""
    precision: Precision
    """Number format of weights and activations."""
    quantization: Quantization | None = None
    """How the frozen weights are held while adapters train; none: in that precision."""
    system_prompt: str | None = None
    """The recipe's system prompt, for whoever chats with the model; the dataset's rows hold it already."""
    alarms: Alarms = Alarms()
    """When to warn and when to stop; no part of the identity, since they change no weight."""
    versions: dict[str, str] = {}
    """Library versions that count as part of the identity (`strict_versions`); empty: none do."""

    def parents(self) -> dict[str, Artifact]:
        """Everything this stage is made from, by role."""
        return {"policy": self.policy, "dataset": self.dataset}

    def identity(self) -> dict[str, Any]:
        """What decides the weights, as JSON data."""
        # Only where it is asked for: what was trained without keeps its name.
        quantization = {"quantization": self.quantization.model_dump(mode="json")} if self.quantization else {}
        return quantization | {
            "stage": self.stage,
            "code_version": self.code_version,
            "hyperparameters": self.hyperparameters.model_dump(mode="json", exclude={"dataset"}),
            "parents": {role: parent.fingerprint for role, parent in self.parents().items()},
            "seed": self.seed,
            "precision": self.precision,
            "versions": self.versions,
        }

    def admission(self) -> dict[str, Any]:
        """What allowed the stage to start and changes no weight, as JSON data."""
        return {}

    @property
    def name(self) -> str:
        """Name of the checkpoint that this input leads to: `dpo-0123456789abcdef`."""
        return f"{self.stage}-{self.id}"


class SFTInput(TrainingInput):
    """Supervised fine-tuning of the base model."""

    stage: ClassVar[Stage] = "sft"
    code_version: ClassVar[int] = 1
    hyperparameters: SFT


class RewardInput(TrainingInput):
    """Reward modelling from the SFT model."""

    stage: ClassVar[Stage] = "reward"
    code_version: ClassVar[int] = 1
    hyperparameters: RewardModel


class DPOInput(TrainingInput):
    """Preference training of the SFT model, which is also the reference."""

    stage: ClassVar[Stage] = "dpo"
    code_version: ClassVar[int] = 1
    hyperparameters: DPO


Generator = Literal["transformers", "vllm"]


class GRPOInput(TrainingInput):
    """Reinforcement learning of the last policy."""

    stage: ClassVar[Stage] = "grpo"
    code_version: ClassVar[int] = 3
    hyperparameters: GRPO
    reward_model: Checkpoint | None = None
    """Scorer of completions, where the recipe's rewards ask for one."""
    reward_accuracy: Estimate | None = None
    """How well it ranks held-out pairs; decides whether it may be used, not what it teaches."""
    scorers: dict[str, Checkpoint] = {}
    """Other reward models, by the label of the reward that names each."""
    scorer_accuracies: dict[str, Estimate] = {}
    """How well each of them ranks held-out pairs, where there are such pairs."""
    generator: Generator = "transformers"
    """What generates the completions."""
    functions: dict[str, str] = {}
    """SHA-256 of the file of each function of the user's, by the reward's label."""

    def parents(self) -> dict[str, Artifact]:
        """Policy, prompts and the reward models that are used."""
        own = self.reward_model if self.hyperparameters.wants_own_reward_model else None
        others = {f"reward_model {label}": scorer for label, scorer in self.scorers.items()}
        return super().parents() | ({"reward_model": own} if own else {}) | others

    def identity(self) -> dict[str, Any]:
        """What decides the weights, as JSON data; a reward says itself which other model or function it is."""
        identity = super().identity()
        rewards = [self._told(reward) for reward in self.hyperparameters.rewards]
        parents = {role: each for role, each in identity["parents"].items() if not role.startswith("reward_model ")}
        # vLLM's samples differ, and TRL's loss then weighs and masks completions by how much; the default is left out.
        generator = {"generator": self.generator} if self.generator != "transformers" else {}
        hyperparameters = identity["hyperparameters"] | {"rewards": rewards}
        return generator | identity | {"hyperparameters": hyperparameters, "parents": parents}

    def _told(self, reward: Reward) -> dict[str, Any]:
        """A reward as far as it decides weights: not its name, nor its limits, nor where things are."""
        # What is at its default is left out, so what was trained before an option came keeps its name.
        told = {"weight": reward.weight} | reward.model_dump(mode="json", exclude_defaults=True, exclude=_UNTOLD)
        if reward.function:
            told |= {"function": reward.function.rpartition(":")[2], "sha256": self.functions.get(reward.label)}
        if reward.model:
            told |= {"model": self.scorers[reward.label].fingerprint if reward.label in self.scorers else None}
        return told

    def admission(self) -> dict[str, Any]:
        """How well the reward models rank held-out pairs, and the rewards in full where their identity is not."""
        own = {"reward_accuracy": self.reward_accuracy.model_dump(mode="json")} if self.reward_accuracy else {}
        others = {label: accuracy.model_dump(mode="json") for label, accuracy in self.scorer_accuracies.items()}
        rewards = [reward.without_folders().model_dump(mode="json") for reward in self.hyperparameters.rewards]
        in_full = any(reward.model_fields_set & _UNTOLD for reward in self.hyperparameters.rewards)
        return own | ({"scorer_accuracies": others} if others else {}) | ({"rewards": rewards} if in_full else {})


class HeldOutSet(Contract):
    """A further set of rows to judge a model on."""

    name: str
    """What figures call it."""
    verifier: Verifier
    """Decides whether a reply is right."""
    prompts: Dataset | None = None
    """Prompts with what is expected."""
    preferences: Dataset | None = None
    """Pairs."""


class EvaluationInput(Request):
    """One model and the rows that it is judged on."""

    code_version: ClassVar[int] = 2

    checkpoint: Checkpoint
    """The model to judge; a reward model is judged on pairs only."""
    spec: Evaluation
    """What to measure."""
    prompts: Dataset
    """Held-out prompts with their answers."""
    preferences: Dataset | None
    """Held-out pairs."""
    sets: tuple[HeldOutSet, ...] = ()
    """Further rows."""
    parent: Checkpoint | None = None
    """The model that a policy was trained from, for its divergence and its implicit reward."""
    reward_model: Checkpoint | None = None
    """Scorer of a policy's replies."""
    harness_sha256: str = ""
    """Digest of the harness's own task files; empty without any."""
    seed: int
    """Seed of sampling."""

    def parents(self) -> dict[str, Artifact]:
        """The model, the rows and what it is measured with, by role."""
        further = {
            f"{one.name}: {role}": rows
            for one in self.sets
            for role, rows in (("prompts", one.prompts), ("preferences", one.preferences))
        }
        named = {
            "checkpoint": self.checkpoint, "prompts": self.prompts, "preferences": self.preferences,
            "parent": self.parent, "reward_model": self.reward_model,
        }  # fmt: skip
        return {role: artifact for role, artifact in (named | further).items() if artifact}

    def identity(self) -> dict[str, Any]:
        """What decides the figures, as JSON data."""
        elsewhere = {"prompts", "preferences", "sets", "judge", "verifier"}
        verifiers = {"": self.spec.verifier} | {one.name: one.verifier for one in self.sets}
        return {
            "stage": "evaluation",
            "code_version": self.code_version,
            "spec": self.spec.model_dump(mode="json", exclude=elsewhere | {"harness"}),
            "harness": self._harness(),
            "verifiers": {name: rule.identity() for name, rule in verifiers.items()},
            "parents": {role: parent.fingerprint for role, parent in self.parents().items()},
            "seed": self.seed,
        }

    def _harness(self) -> dict[str, Any] | None:
        """What decides the harness's figures, wherever its files lie."""
        if self.spec.harness is None:
            return None
        return self.spec.harness.model_dump(mode="json", exclude={"include_path"}) | {"sha256": self.harness_sha256}
