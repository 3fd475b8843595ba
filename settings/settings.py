"""Settings: what differs between a laptop and a cluster and changes no weight.

Read from the environment (`ALIGN_…`) and a `.env` file. Built in the flow or the command and passed down; nothing reads
them at import.
"""

import os
import re
import tempfile
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Literal

from dotenv import dotenv_values
from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from models.errors import InputError, describe_validation
from models.launch import Sharding


def _queue_of_user() -> Path:
    return Path(tempfile.gettempdir()) / f"align-queue-{os.getuid()}"


class Settings(BaseSettings):
    """Facts about this machine and wishes about how, not what, to train."""

    model_config = SettingsConfigDict(
        env_prefix="ALIGN_", env_file=".env", env_ignore_empty=True, extra="ignore", frozen=True
    )

    home: Path = Path("artifacts")
    """Artifact root: base models, datasets, checkpoints, runs."""
    remote: str | None = None
    """Artifact root that machines share: `s3://bucket/prefix`, `gs://…`, `az://…` or `file:///…`. Finished folders go
    there, and what this machine lacks is fetched from there into `home`; default: none."""
    cache_bytes: int | None = Field(None, ge=0)
    """With a remote, what finished folders may take in `home`: those least recently used that are safe in the remote
    go first, never what runs at work need or a process has taken; default: no limit."""
    remote_lease_seconds: float = Field(120.0, ge=3)
    """With a remote, another machine takes over a stage of which nothing was heard for so long."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Device to train on; `auto` takes the best there is."""
    threads: int | None = Field(None, ge=1)
    """CPU threads for all stages of the machine together; default: the cores that this process may use."""
    parallel_stages: int | None = Field(None, ge=1)
    """Stages that may compute at the same time, over all runs of the machine; default: 2 on a CPU with at least two
    cores, else one a device; always one where several machines train together."""
    queue: Path = Field(default_factory=_queue_of_user)
    """Folder of the machine's queue, where runs wait for one another; default: this user's own among the system's
    temporary files. Where several users train, name one folder of a group of theirs, on the machine's own disk."""
    processes: int = Field(1, ge=1)
    """Processes of each machine that train a stage together, with an accelerator or a part of the threads each."""
    machines: int = Field(1, ge=1)
    """Machines that train each stage together. Number 0 runs the flow, the others `align join`; all have the same
    artifact root at the same path, on a file system that they share."""
    machine_rank: int = Field(0, ge=0)
    """Number of this machine among them, from 0."""
    main_address: str | None = Field(None, pattern=r"^\S+:[0-9]{1,5}$")
    """Where the others reach machine 0, and a port that is free there: `10.0.0.1:29500`."""
    join_seconds: float = Field(600.0, gt=0)
    """Time that machine 0 gives the others to come, for each attempt at a stage."""
    sharding: Sharding = "ddp"
    """What several processes share: `ddp` nothing, `fsdp2` weights, gradients and optimizer (PyTorch's FSDP 2), `zero2`
    gradients and optimizer, `zero3` the weights as well (DeepSpeed)."""
    per_device_train_batch_size: int | None = Field(None, ge=1)
    """Largest micro-batch in rows; default: the whole effective batch. Halved after running out of memory."""
    checkpoint_every_steps: int = Field(25, ge=1)
    """Most optimizer steps between two trainer checkpoints, from which an interrupted stage goes on."""
    checkpoint_every_minutes: float = Field(5.0, gt=0)
    """Most minutes between two trainer checkpoints, give or take a step."""
    checkpoints_kept: int = Field(2, ge=2)
    """Trainer checkpoints kept while a stage trains; with one alone, a damaged one would cost the whole stage."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time, the same weights."""
    share_prompts: bool = True
    """Compute once what rows of a batch begin with, such as the prompt of several completions: less time and memory,
    the same weights and figures up to rounding."""
    memory_limit_bytes: int | None = Field(None, ge=2**28)
    """Host memory that each process of a stage may allocate, so that mistakes spare the machine; default: no limit."""
    stage_timeout_seconds: float | None = Field(None, gt=0)
    """A stage that takes longer is stopped and fails; default: no limit."""
    reserved_disk_bytes: int = Field(1_000_000_000, ge=0)
    """Space that must stay free on the artifact root's disk."""
    strict_versions: bool = False
    """Make library versions part of every training stage's fingerprint."""
    report_to: Annotated[tuple[str, ...], NoDecode] = ()
    """Trackers that get the training metrics, by Transformers' names, separated by commas: `tensorboard,wandb`."""
    vllm: Literal["colocate", "server"] | None = None
    """Let vLLM generate GRPO's completions: `colocate` on the devices that train, `server` on others, behind a URL;
    default: Transformers generates."""
    vllm_server_url: str | None = None
    """Base URL of `vllm serve`, for `server`: `http://10.0.0.2:8000`."""
    vllm_gpu_memory_utilization: float = Field(0.3, gt=0, lt=1)
    """Share of the device's memory, between 0 and 1, that vLLM takes for weights and cache, for `colocate`."""
    vllm_tensor_parallel_size: int = Field(1, ge=1)
    """Devices that a copy of the model is spread over, for `colocate`."""
    vllm_max_model_length: int | None = Field(None, ge=1)
    """Longest sequence in tokens that vLLM keeps room for; default: the model's context, which may not fit."""
    vllm_sleep: bool = False
    """Give vLLM's memory back while weights are updated, at the price of loading them anew, for `colocate`."""
    promoted_by: str = ""
    """Who promotes checkpoints, as the history of aliases shall tell; default: it tells nobody."""
    notify: Annotated[tuple[str, ...], NoDecode] = ()
    """Prefect blocks that `align up` lets tell people what happens, as `type-slug/name`, separated by commas:
    `slack-webhook/team,custom-webhook/ops`."""

    judge_url: str | None = None
    """Base URL of the OpenAI-compatible API where the recipe's judge answers: `http://localhost:8000/v1`."""
    judge_api_key: SecretStr | None = None
    """Key that the judge's server wants."""

    @field_validator("report_to", "notify", mode="before")
    @classmethod
    def _split_at_commas(cls, value: object) -> object:
        return tuple(filter(None, value.replace(" ", "").split(","))) if isinstance(value, str) else value

    @field_validator("notify")
    @classmethod
    def _name_blocks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if not re.fullmatch(r"[a-z0-9-]+/[a-z0-9-]+", name):
                raise ValueError(f"'{name}' is no block; name it type-slug/name, as in slack-webhook/team")
        return value


def load_settings() -> Settings:
    """Read the settings.

    Raises:
        InputError: a variable has an impossible value; the message names it.
    """
    _refuse_unknown_variables()
    try:
        settings = Settings()
    except ValidationError as error:
        told = describe_validation(error, "").splitlines()
        raise InputError("\n".join(map(_named, told))) from None
    places = {"home": settings.home, "queue": settings.queue}
    return settings.model_copy(update={name: place.expanduser().absolute() for name, place in places.items()})


def _named(problem: str) -> str:
    """`threads: …` as `environment or .env: ALIGN_THREADS: …`."""
    field, _, rule = problem.partition(":")
    return f"environment or .env: ALIGN_{field.upper()}:{rule}"


def _refuse_unknown_variables() -> None:
    known = [field.upper() for field in Settings.model_fields]
    file = Settings.model_config.get("env_file")
    written = dotenv_values(str(file)) if file else {}
    for place, variables in (("environment", list(os.environ)), (".env", list(written))):
        for variable in variables:
            prefix, _, name = variable.upper().partition("_")
            if prefix == "ALIGN" and name not in known:
                near = get_close_matches(name, known, n=1)
                remedy = f"did you mean ALIGN_{near[0]}?" if near else f"known ones: ALIGN_{', ALIGN_'.join(known)}"
                raise InputError(f"{place}: unknown setting {variable}; {remedy}")
