"""vLLM, which generates GRPO's completions where the settings say so: how it is set up, and what must be there for it.

That vLLM generates is part of the stage's fingerprint, since it changes the weights; where it runs is not.
"""

import importlib.util
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import httpx
from packaging.version import Version

from models.errors import InputError
from models.recipe import Recipe
from models.stages import GRPOInput, TrainingInput
from settings.machine import Machine
from settings.settings import Settings
from tasks.core.plan import VLLM

OLDEST, NEWEST = Version("0.22.0"), Version("0.31.0")
"""The releases of vLLM that TRL 1.16 works with, as its `import_utils` says."""
_SERVE = (
    "VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --logprobs-mode processed_logprobs --max-logprobs -1 "
    """--weight-transfer-config '{"backend": "nccl"}'"""
)
_RESTART = f"restart it with `{_SERVE}`"
_SECONDS_TO_ANSWER = 10


def vllm_plan(stage: TrainingInput, settings: Settings) -> VLLM | None:
    """How vLLM generates the completions of a stage; none where it does not.

    Raises:
        InputError: the stage was asked for with vLLM, which the settings do not set up.
    """
    if not isinstance(stage, GRPOInput) or stage.generator != "vllm":
        return None
    if settings.vllm is None:
        raise InputError(f"{stage.name}: its completions come from vLLM; set ALIGN_VLLM to colocate or server")
    return VLLM(
        mode=settings.vllm,
        server_url=settings.vllm_server_url,
        gpu_memory_utilization=settings.vllm_gpu_memory_utilization,
        tensor_parallel_size=settings.vllm_tensor_parallel_size,
        max_model_length=settings.vllm_max_model_length,
        sleep=settings.vllm_sleep,
    )


def check_vllm(recipe: Recipe, settings: Settings, machine: Machine, problems: list[str]) -> None:
    """Refuse a vLLM that is not installed, not reachable, or cannot get the weights."""
    if settings.vllm is None:
        return
    if machine.device != "cuda":
        rule = f"vLLM's weights are updated on a CUDA device, and this machine trains on {machine.device}"
        problems.append(f"ALIGN_VLLM: {rule}; unset it, and Transformers generates")
    problems += _package_problems()
    problems += _server_problems(recipe, settings) if settings.vllm == "server" else _problems_beside(settings, machine)


def _package_problems() -> Iterator[str]:
    if not importlib.util.find_spec("vllm"):
        yield "ALIGN_VLLM: vllm is not installed; run `pip install 'alignment-pipeline[vllm]'`"
    elif not OLDEST <= Version(Version(version("vllm")).base_version) <= NEWEST:
        yield f"ALIGN_VLLM: vllm {version('vllm')} is installed, but TRL works with {OLDEST} to {NEWEST}; install one"


def _problems_beside(settings: Settings, machine: Machine) -> Iterator[str]:
    """What speaks against vLLM on the devices that train."""
    if settings.vllm_tensor_parallel_size > max(1, machine.accelerators):
        rule = f"{settings.vllm_tensor_parallel_size} is more than the {machine.accelerators} devices of this machine"
        yield f"ALIGN_VLLM_TENSOR_PARALLEL_SIZE: {rule}; lower it"
    if settings.vllm_server_url:
        yield "ALIGN_VLLM_SERVER_URL: has no effect on ALIGN_VLLM=colocate; unset it, or set ALIGN_VLLM=server"


def _server_problems(recipe: Recipe, settings: Settings) -> Iterator[str]:
    if recipe.quantization:
        rule = "a vLLM server cannot take weights that are held in 4 bits while they train"
        yield f"quantization: {rule}; remove it, or set ALIGN_VLLM=colocate"
    url = (settings.vllm_server_url or "").rstrip("/")
    if not url:
        yield f"ALIGN_VLLM_SERVER_URL: not set; start a server (`{_SERVE}`) and give its URL"
        return
    try:
        found = httpx.get(f"{url}/server_info", params={"config_format": "json"}, timeout=_SECONDS_TO_ANSWER)
        known = found.json().get("vllm_config") if found.status_code == httpx.codes.OK else None
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        yield f"ALIGN_VLLM_SERVER_URL: {url} gives no answer ({type(error).__name__}); start it (`{_SERVE}`)"
        return
    if not isinstance(known, dict):
        yield f"ALIGN_VLLM_SERVER_URL: {url} does not tell how it is set up (HTTP {found.status_code}); {_RESTART}"
        return
    yield from _setup_problems(url, known)


def _setup_problems(url: str, config: dict[str, Any]) -> Iterator[str]:
    """What a server's configuration lacks, as it tells it."""
    if not config.get("weight_transfer_config"):
        yield f"ALIGN_VLLM_SERVER_URL: {url} takes no new weights; {_RESTART}"
    mode = (config.get("model_config") or {}).get("logprobs_mode")
    if mode != "processed_logprobs":
        rule = f"tells log-probabilities as '{mode}', which would bias the loss"
        yield f"ALIGN_VLLM_SERVER_URL: {url} {rule}; {_RESTART}"
