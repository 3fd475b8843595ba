"""Every form of an exported checkpoint, loaded as others load it: plain Transformers, PEFT and TRL, equal outputs."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows.__main__ import main
from models.artifacts import Precision
from models.errors import InputError, StageError
from models.fingerprint import ID_LENGTH, fingerprint
from tasks.publishing.export import read_export
from tasks.store import ArtifactStore
from tests.published import Shelf, build_model, build_tokenizer

pytestmark = pytest.mark.slow

TEXT = "<|im_start|>user\nthe answer is 12 + 7<|im_end|>\n"
SILENT: Callable[[Any], None] = lambda report: None  # noqa: E731


@pytest.fixture
def export(shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Export a checkpoint of the artifact root with real models, and return the folder."""
    monkeypatch.setenv("ALIGN_HOME", str(shelf.store.home))

    def run(stage: str, *options: str) -> Path:
        assert main(["export", getattr(shelf, stage), str(tmp_path / "out"), *options]) == 0
        return tmp_path / "out"

    return run


def outputs(model: Any, tokenizer: Any) -> Any:
    """Logits, or scores, of one text in float32."""
    import torch

    with torch.no_grad():
        return model.float().eval()(**tokenizer(TEXT, return_tensors="pt")).logits


def of_folder(folder: Path, *, scorer: bool = False, **options: Any) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    kind = AutoModelForSequenceClassification if scorer else AutoModelForCausalLM
    return outputs(kind.from_pretrained(folder, **options), AutoTokenizer.from_pretrained(folder))


def relative_error(found: Any, wanted: Any) -> float:
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("stage", ["dpo", "reward"])
def test_the_merged_model_is_the_checkpoint(stage: str, export: Callable[..., Path], shelf: Shelf) -> None:
    found, wanted = (
        of_folder(folder, scorer=stage == "reward") for folder in (export(stage), shelf.path(getattr(shelf, stage)))
    )
    assert found.shape[-1] == (1 if stage == "reward" else 280)
    assert relative_error(found, wanted) == 0.0


def test_a_model_of_several_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ArtifactStore(tmp_path / "home")
    content = build(store.home / ".making", "llama", max_shard_size="40KB")
    identity = {"stage": "base", "precision": "fp32"}
    name = fingerprint(identity)[:ID_LENGTH]
    store.publish(content, kind="base", name=name, fingerprint=fingerprint(identity), identity=identity)
    monkeypatch.setenv("ALIGN_HOME", str(store.home))
    wanted = of_folder(store.folder("base", name))
    for dtype in ("float32", "float16"):
        assert main(["export", name, str(tmp_path / dtype), "--dtype", dtype]) == 0
        assert relative_error(of_folder(tmp_path / dtype), wanted) < 0.005
    assert len(list((tmp_path / "float32").glob("model-0000*.safetensors"))) > 1


@pytest.mark.parametrize(("dtype", "most"), [("bfloat16", 0.02), ("float16", 0.005)])
@pytest.mark.parametrize("stage", ["dpo", "reward"])
def test_another_number_format_is_told_with_what_it_costs(
    stage: str, dtype: str, most: float, export: Callable[..., Path], shelf: Shelf
) -> None:
    import torch
    from safetensors.torch import load_file

    folder = export(stage, "--dtype", dtype)
    assert {tensor.dtype for tensor in load_file(folder / "model.safetensors").values()} == {getattr(torch, dtype)}
    scorer = stage == "reward"
    error = relative_error(
        of_folder(folder, scorer=scorer), of_folder(shelf.path(getattr(shelf, stage)), scorer=scorer)
    )
    record = read_export(folder)
    assert record
    assert record.relative_error
    assert 0 < record.relative_error < most
    assert 0 < error < most
    assert f"{record.relative_error:.2g} of their norm" in (folder / "README.md").read_text()


@pytest.mark.parametrize("stage", ["dpo", "reward"])
def test_the_adapter_gives_the_checkpoint_on_its_base(stage: str, export: Callable[..., Path], shelf: Shelf) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    scorer = stage == "reward"
    kind, options = (AutoModelForSequenceClassification, {"num_labels": 1}) if scorer else (AutoModelForCausalLM, {})
    folder = export(stage, "--weights", "adapter")
    base = kind.from_pretrained(shelf.path(shelf.sft), **options)
    found = outputs(PeftModel.from_pretrained(base, folder), AutoTokenizer.from_pretrained(folder))
    wanted = of_folder(shelf.path(getattr(shelf, stage)), scorer=scorer)
    assert relative_error(found, wanted) < 1e-5
    assert relative_error(of_folder(shelf.path(shelf.sft), scorer=scorer, **options), wanted) > 0.01


@pytest.mark.parametrize("options", [(), ("--dtype", "float16"), ("--weights", "adapter"), ("--weights", "gguf")])
def test_the_card_shows_how_to_load_it(options: tuple[str, ...], export: Callable[..., Path], shelf: Shelf) -> None:
    """What the card shows is run as it stands, in the folder, offline."""
    folder = export("dpo", *options)
    code = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    (shown,) = (part.replace('"BASE"', repr(str(shelf.path(shelf.sft)))) for part in code)
    shown += f"\nprint(float(model.float()(**tokenizer({TEXT!r}, return_tensors='pt')).logits.norm()))"
    done = subprocess.run([sys.executable, "-c", shown], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    wanted = float(of_folder(shelf.path(shelf.dpo)).norm())
    assert float(done.stdout.split()[-1]) == pytest.approx(wanted, rel=1e-3)


def test_a_run_of_all_stages_is_published_with_what_it_has_noted(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a real pipeline writes into its manifests and evaluations ends in card and bill."""
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    monkeypatch.setenv("ALIGN_HOME", str(home))
    assert main(["export", "grpo", str(tmp_path / "out")]) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    files = ("sft.jsonl", "preferences.jsonl", "prompts.jsonl", "heldout.jsonl", "heldout_preferences.jsonl")
    assert all(name in card for name in files)
    assert all(f"\n| {name} | " in card for name in ("exact match", "sampled reward", "preference accuracy"))
    assert all(f"({role})" in card for role in ("policy", "reward model", "dataset"))
    assert str(home.parent) not in card
    bom = (tmp_path / "out" / "bom.cdx.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(bom) is None
    assert main(["export", "reward", str(tmp_path / "adapter"), "--weights", "adapter"]) == 0


def test_trl_goes_on_from_the_folder(export: Callable[..., Path], tmp_path: Path) -> None:
    import torch
    from datasets import Dataset
    from safetensors.torch import load_file
    from trl import SFTConfig, SFTTrainer

    folder = export("dpo", "--dtype", "float32")
    rows = [{"prompt": f"{number} + 1", "completion": str(number + 1)} for number in range(4)]
    config = SFTConfig(
        str(tmp_path / "trained"),
        max_steps=1,
        activation_checkpointing=False,
        gradient_checkpointing=None,
        use_cpu=True,
        bf16=False,
        report_to=[],
        learning_rate=0.1,
    )
    trainer = SFTTrainer(model=str(folder), args=config, train_dataset=Dataset.from_list(rows))
    trainer.train()
    before = load_file(folder / "model.safetensors")
    after = trainer.model.state_dict()
    assert not torch.equal(after["model.norm.weight"].cpu(), before["model.norm.weight"])


@pytest.mark.parametrize(("dtype", "most"), [(None, 1e-5), ("bfloat16", 0.02), ("float16", 0.005)])
def test_gguf_gives_the_checkpoints_outputs(
    dtype: str | None, most: float, export: Callable[..., Path], shelf: Shelf
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    folder = export("dpo", "--weights", "gguf", *(["--dtype", dtype] if dtype else []))
    (file,) = folder.glob("*.gguf")
    options = {"pretrained_model_name_or_path": folder, "gguf_file": file.name}
    model = AutoModelForCausalLM.from_pretrained(**options, quantization_config=GgufConfig(dequantize=True))
    tokenizer = AutoTokenizer.from_pretrained(**options)
    assert relative_error(outputs(model, tokenizer), of_folder(shelf.path(shelf.dpo))) < most
    record = read_export(folder)
    assert record
    assert record.relative_error is not None
    assert record.relative_error < most


SPLITS = {
    "llama3": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+",
    "qwen2": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+",
}


def split_by(expression: str) -> Any:
    from tokenizers import Regex, pre_tokenizers

    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(expression), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False),
        ]
    )


def digits() -> Any:
    from tokenizers import pre_tokenizers

    return pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )


def build(folder: Path, kind: str, pre_tokenizer: Any = None, max_shard_size: str = "50GB", **shape: Any) -> Path:
    build_model(kind, **shape).save_pretrained(folder, max_shard_size=max_shard_size)
    build_tokenizer(pre_tokenizer).save_pretrained(folder)
    return folder


MODELS: dict[str, tuple[str, Callable[[], Any], dict[str, Any]]] = {
    "llama": ("llama", digits, {}),
    "untied llama": ("llama", lambda: split_by(SPLITS["llama3"]), {"tied": False}),
    "llama with wide heads": ("llama", lambda: None, {"head_dim": 16}),
    "padded vocabulary": ("llama", lambda: None, {"vocab_size": 288}),
    "qwen2": ("qwen2", lambda: split_by(SPLITS["qwen2"]), {"rope_theta": 1e6}),
    "untied qwen2": ("qwen2", lambda: split_by(SPLITS["qwen2"]), {"tied": False}),
    "qwen3": ("qwen3", lambda: split_by(SPLITS["qwen2"]), {"head_dim": 128}),
}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", MODELS)
def test_gguf_of_each_architecture(name: str, precision: Precision, tmp_path: Path) -> None:
    from tasks.core.exporting import convert_to_gguf

    kind, pre_tokenizer, shape = MODELS[name]
    source = build(tmp_path / "model", kind, pre_tokenizer(), **shape)
    error = convert_to_gguf(source, precision, tmp_path / "out.gguf", SILENT)
    assert error < (1e-5 if precision == "fp32" else 0.05)


@pytest.mark.parametrize(
    ("kind", "shape", "says"),
    [
        ("gpt_neox", {}, "a model of type gpt_neox; written are llama, qwen2, qwen3"),
        ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}, "scaled by linear"),
        ("llama", {"attention_bias": True}, "layers with biases"),
        ("llama", {"hidden_act": "gelu"}, "another activation than SiLU"),
        ("qwen3", {"head_dim": 16}, "a Qwen3 with heads of 16"),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}, "sliding window"),
    ],
)
def test_models_that_cannot_be_written_as_gguf_are_refused(
    kind: str, shape: dict[str, Any], says: str, tmp_path: Path
) -> None:
    from tasks.core.exporting import convert_to_gguf

    source = build(tmp_path / "model", kind, **shape)
    with pytest.raises(InputError, match=f"{says}.* cannot be written as GGUF here; export with --weights merged"):
        convert_to_gguf(source, "fp32", tmp_path / "out.gguf", SILENT)
    assert not (tmp_path / "out.gguf").exists()


def test_a_tokenizer_that_splits_otherwise_is_refused(tmp_path: Path) -> None:
    from tokenizers import pre_tokenizers

    from tasks.core.exporting import convert_to_gguf

    source = build(tmp_path / "model", "llama", pre_tokenizers.Whitespace())
    with pytest.raises(InputError, match="a tokenizer that splits text by Whitespace in a way unknown here"):
        convert_to_gguf(source, "fp32", tmp_path / "out.gguf", SILENT)


def test_a_file_that_gives_other_outputs_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tasks.core.exporting import convert_to_gguf

    source = build(tmp_path / "model", "llama")
    monkeypatch.setattr("tasks.core.gguf_file._by_rotary_pairs", lambda tensor, heads: tensor)
    with pytest.raises(StageError, match=r"gives other outputs .* relative error .* nothing was published"):
        convert_to_gguf(source, "fp32", tmp_path / "out.gguf", SILENT)
