"""vLLM as the generator of GRPO's completions: what reaches TRL, what is refused before, and what names the stage.

Updating its weights takes NCCL and so a CUDA device: nothing here generates with it.
"""

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from models.artifacts import Checkpoint, Dataset
from models.errors import InputError
from models.recipe import Quantization, Recipe
from models.stages import GRPOInput, SFTInput
from settings.machine import Machine
from settings.settings import Settings
from tasks import vllm
from tasks.core.plan import VLLM
from tasks.execution import Execution
from tasks.ledger import plan_attempt
from tasks.vllm import check_vllm, vllm_plan

GPU = Machine(device="cuda", name="test", cores=2, memory_bytes=2**34, native_bf16=True, accelerators=1)
CPU = GPU.model_copy(update={"device": "cpu", "accelerators": 0})
READY = {"weight_transfer_config": {"backend": "nccl"}, "model_config": {"logprobs_mode": "processed_logprobs"}}


@pytest.fixture
def stage(recipe: Recipe, tmp_path: Path) -> GRPOInput:
    """GRPO whose completions come from vLLM."""
    assert recipe.grpo
    policy = Checkpoint(path=tmp_path / "sft-0", fingerprint="0" * 64, stage="sft", precision="bf16")
    dataset = Dataset(path=tmp_path / "rows", fingerprint="1" * 64, rows=48, source="rows")
    return GRPOInput(
        policy=policy, dataset=dataset, hyperparameters=recipe.grpo, seed=1, precision="bf16", generator="vllm"
    )


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A vLLM that TRL works with, as far as its metadata go."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: ModuleSpec(name, None))
    monkeypatch.setattr(vllm, "version", lambda name: "0.30.1.post1")


@pytest.fixture
def server() -> Iterator[tuple[str, dict[str, Any]]]:
    """A server's URL, and the configuration that it tells; none: it tells nothing."""
    told: dict[str, Any] = {}

    class Server(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known = self.path.startswith("/server_info?config_format=json") and told
            body = json.dumps({"vllm_config": told}).encode() if known else b"{}"
            self.send_response(200 if known else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Nothing: the test's output is its own."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}", told
        running.shutdown()


def problems(recipe: Recipe, machine: Machine = GPU, **settings: Any) -> list[str]:
    found: list[str] = []
    check_vllm(recipe, Settings.model_validate(settings), machine, found)
    return found


def test_every_setting_reaches_trl(stage: GRPOInput, execution: Execution, tmp_path: Path) -> None:
    from trl import GRPOConfig

    from tasks.core.grpo import grpo_arguments

    wanted: dict[str, Any] = {
        "vllm": "colocate",
        "vllm_server_url": "http://server:8000",
        "vllm_gpu_memory_utilization": 0.4,
        "vllm_tensor_parallel_size": 2,
        "vllm_max_model_length": 1024,
        "vllm_sleep": True,
    }
    settings = execution.settings.model_copy(update=wanted)
    plan = plan_attempt(stage, (), execution.model_copy(update={"settings": settings}))
    arguments = grpo_arguments(stage, plan, tmp_path) | {"use_cpu": True, "bf16": False}
    config = GRPOConfig(**arguments)
    assert config.use_vllm
    assert config.vllm_mode == "colocate"
    assert config.vllm_server_base_url == "http://server:8000"
    assert config.vllm_gpu_memory_utilization == 0.4
    assert config.vllm_tensor_parallel_size == 2
    assert config.vllm_max_model_length == 1024
    assert config.vllm_enable_sleep_mode
    assert config.vllm_importance_sampling_correction  # vLLM's numerics differ, and the loss allows for it


def test_only_a_stage_that_was_asked_for_with_it_uses_it(stage: GRPOInput, recipe: Recipe) -> None:
    settings = Settings(vllm="colocate")
    assert vllm_plan(stage, settings) == VLLM(mode="colocate")
    assert vllm_plan(stage.model_copy(update={"generator": "transformers"}), settings) is None
    sft = SFTInput(policy=stage.policy, dataset=stage.dataset, hyperparameters=recipe.sft, seed=1, precision="bf16")
    assert vllm_plan(sft, settings) is None
    with pytest.raises(InputError, match="set ALIGN_VLLM"):
        vllm_plan(stage, Settings())


def test_that_it_generates_is_part_of_the_fingerprint_but_not_where(stage: GRPOInput, execution: Execution) -> None:
    without = stage.model_copy(update={"generator": "transformers"})
    assert "generator" not in without.identity()
    assert stage.identity() == without.identity() | {"generator": "vllm"}
    for mode in ("colocate", "server"):
        settings = execution.settings.model_copy(update={"vllm": mode})
        assert execution.model_copy(update={"settings": settings}).generator == "vllm"
    assert execution.generator == "transformers"


def test_a_generation_gives_the_log_probability_of_each_token_after_a_sync() -> None:
    from tasks.core.grpo import _Trainer

    def generate(prompts: list[list[int]], num_generations: int, **_: Any) -> tuple[Any, ...]:
        assert (prompts, num_generations) == ([[5], [5]], 2)
        return None, [[7, 8], [9]], [[[-0.1], [-0.2]], [[-0.3]]], None

    trainer = object.__new__(_Trainer)
    synced: list[int] = []
    trainer.use_vllm, trainer._last_loaded_step = True, -1
    trainer.accelerator = SimpleNamespace(device="cpu", is_main_process=True)
    trainer.state = SimpleNamespace(global_step=0)
    trainer.args = SimpleNamespace(report_to=[])
    trainer.vllm_generation = SimpleNamespace(generate=generate, sync_weights=lambda: synced.append(1))
    assert trainer._generate_single_turn([[5], [5]], None, {}, 2) == ([[7, 8], [9]], [[-0.1, -0.2], [-0.3]])
    assert synced == [1]


def test_versions_are_those_that_trl_names() -> None:
    import trl

    source = (Path(trl.__file__).parent / "import_utils.py").read_text()
    found = re.search(r'Version\("([\d.]+)"\) <= _vllm_base_version <= Version\("([\d.]+)"\)', source)
    assert found
    assert found.groups() == (str(vllm.OLDEST), str(vllm.NEWEST))


def test_without_it_nothing_is_asked_for(recipe: Recipe) -> None:
    assert problems(recipe, CPU) == []


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("machine", "settings", "said"),
    [
        (CPU, {"vllm": "colocate"}, "this machine trains on cpu; unset it"),
        (GPU, {"vllm": "colocate", "vllm_tensor_parallel_size": 2}, "more than the 1 devices"),
        (GPU, {"vllm": "colocate", "vllm_server_url": "http://x"}, "no effect on ALIGN_VLLM=colocate"),
        (GPU, {"vllm": "server"}, "ALIGN_VLLM_SERVER_URL: not set; start a server (`VLLM_SERVER_DEV_MODE=1"),
        (GPU, {"vllm": "server", "vllm_server_url": "http://127.0.0.1:9"}, "gives no answer (ConnectError)"),
        (GPU, {"vllm": "server", "vllm_server_url": "nonsense"}, "gives no answer (UnsupportedProtocol)"),
    ],
)
def test_what_cannot_work_is_told(recipe: Recipe, machine: Machine, settings: dict[str, Any], said: str) -> None:
    (problem,) = problems(recipe, machine, **settings)
    assert said in problem


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("told", "said"),
    [
        (READY, ""),
        ({}, "does not tell how it is set up (HTTP 404); restart it with `VLLM_SERVER_DEV_MODE=1"),
        (READY | {"weight_transfer_config": None}, "takes no new weights"),
        (READY | {"model_config": {"logprobs_mode": "raw_logprobs"}}, "tells log-probabilities as 'raw_logprobs'"),
    ],
)
def test_a_server_is_asked_whether_it_can_take_weights(
    recipe: Recipe, server: tuple[str, dict[str, Any]], told: dict[str, Any], said: str
) -> None:
    url, answer = server
    answer.update(told)
    found = problems(recipe, vllm="server", vllm_server_url=f"{url}/")
    assert len(found) == bool(said)
    assert said in "".join(found)


@pytest.mark.usefixtures("installed")
def test_a_server_takes_no_weights_in_4_bits(recipe: Recipe, server: tuple[str, dict[str, Any]]) -> None:
    server[1].update(READY)
    quantized = recipe.model_copy(update={"quantization": Quantization()})
    (problem,) = problems(quantized, vllm="server", vllm_server_url=server[0])
    assert problem.startswith("quantization: ")


@pytest.mark.parametrize(
    ("installed_version", "said"),
    [(None, "pip install 'alignment-pipeline[vllm]'"), ("0.21.9", "works with 0.22.0 to 0.31.0"), ("0.32.0", "0.32.0")],
)
def test_a_wrong_package_is_told(
    recipe: Recipe, installed_version: str | None, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = ModuleSpec("vllm", None) if installed_version else None
    monkeypatch.setattr("importlib.util.find_spec", lambda name: found)
    monkeypatch.setattr(vllm, "version", lambda name: installed_version)
    (problem,) = problems(recipe, vllm="colocate")
    assert said in problem
