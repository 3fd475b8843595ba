"""4-bit weights: what reaches bitsandbytes, gradients that stay right, and what is kept in memory."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from pydantic import ValidationError

from models.errors import InputError
from models.recipe import LoRA, Quantization, Recipe
from settings.machine import Machine
from settings.settings import Settings
from tasks import preflight
from tasks.core.loading import load_policy, load_scorer, load_tokenizer
from tasks.core.lora import lora_config, outputs
from tasks.core.quantization import (
    compute_in_float32,
    dequantized,
    pretend_quantized,
    quantization_config,
    quantize_unloaded,
    quantized_layers,
    restore_trained_formats,
    scales_bytes,
)
from tasks.store import ArtifactStore, read_manifest
from tests.faults import checkpoints
from tests.tiny import build_tiny_model, run_align, tiny_recipe, variations

WIDE = {"hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 4}
"""Wide enough for every kernel of bitsandbytes, the one that repacks weights included."""


@pytest.fixture(scope="module")
def wide_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("wide") / "model", dtype="bf16", shape=WIDE)


def load(path: Path, quantization: Quantization | None = Quantization()) -> Any:  # noqa: B008
    return load_policy(path, torch.bfloat16, "cpu", quantization)


def state(model: Any) -> Any:
    """How the first layer is quantised."""
    layer: Any = quantized_layers(model)[0]
    return layer.weight.quant_state


@pytest.mark.parametrize(("field", "changed"), list(variations(Quantization())))
def test_every_field_reaches_bitsandbytes(wide_model: Path, field: str, changed: Quantization) -> None:
    asked, other = (quantization_config(each, torch.bfloat16).to_dict() for each in (Quantization(), changed))
    assert asked != other
    plain, varied = (state(load(wide_model, each)) for each in (Quantization(), changed))
    assert (plain.quant_type, plain.nested) == ("nf4", True)
    assert (varied.quant_type, varied.nested) == (changed.quant_type, changed.double_quant)


def test_the_head_stays_as_it_is(wide_model: Path) -> None:
    assert len(quantized_layers(load(wide_model))) == 2 * 7
    scorer = load_scorer(wide_model, torch.bfloat16, "cpu", Quantization())
    assert len(quantized_layers(scorer)) == 2 * 7
    assert scorer.score.weight.dtype == torch.bfloat16


@pytest.mark.slow
def test_an_evaluation_in_between_leaves_gradients_right(wide_model: Path) -> None:
    from peft import get_peft_model

    torch.manual_seed(0)
    model = get_peft_model(load(wide_model), lora_config(LoRA(), "CAUSAL_LM"))
    ids = torch.arange(3, 35).unsqueeze(0)

    def gradients() -> list[torch.Tensor]:
        model.train().zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        return [each.grad.clone() for each in model.parameters() if each.grad is not None]

    before = gradients()
    with torch.no_grad():
        model.eval()(input_ids=ids)
    assert any(gradient.abs().max() > 0 for gradient in before)
    assert all(map(torch.equal, before, gradients()))


def test_merging_starts_from_the_rounded_weights(wide_model: Path) -> None:
    ids = torch.arange(3, 35).unsqueeze(0)
    with torch.no_grad():
        quantised, plain = load(wide_model)(ids).logits.float(), load(wide_model, None)(ids).logits.float()
        rounded = dequantized(load(wide_model))(ids).logits
    assert (rounded - quantised).norm() < 2e-2 * quantised.norm()
    assert (rounded - quantised).norm() < 0.2 * (plain - quantised).norm()


def test_trained_weights_are_not_rounded(wide_model: Path) -> None:
    from peft import get_peft_model

    model = get_peft_model(
        load_scorer(wide_model, torch.bfloat16, "cpu", Quantization()), lora_config(LoRA(), "SEQ_CLS")
    )
    for parameter in model.parameters():  # as TRL does
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.bfloat16)
    for mixed, of_head in ((False, torch.bfloat16), (True, torch.float32)):
        restore_trained_formats(model, mixed_precision=mixed)
        formats = {("lora" in name): each.dtype for name, each in model.named_parameters() if each.requires_grad}
        assert formats == {True: torch.float32, False: of_head}


@pytest.mark.parametrize("double_quant", [True, False])
def test_what_is_pretended_is_as_large_as_what_is_loaded(wide_model: Path, double_quant: bool) -> None:
    asked = Quantization(double_quant=double_quant)
    pretended = load(wide_model, None).to("meta")
    quantize_unloaded(pretended, asked, torch.bfloat16)
    for layer in quantized_layers(pretended):
        pretend_quantized(layer)
    loaded, made = (quantized_layers(model) for model in (load(wide_model, asked), pretended))
    assert [scales_bytes(layer) for layer in made] == [scales_bytes(layer) for layer in loaded]
    assert [layer.weight.nbytes for layer in made] == [layer.weight.nbytes for layer in loaded]


def test_weights_that_train_themselves_cannot_be_quantised(tiny_model: Path, tiny_data: Path) -> None:
    asked = tiny_recipe(tiny_model, tiny_data, dpo={"lora": None}) | {"quantization": {}}
    with pytest.raises(ValidationError, match=r"quantization is set, but dpo has no lora.*set dpo\.lora, or remove"):
        Recipe.model_validate(asked)


def test_a_device_without_kernels_is_refused(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    apple = Machine(device="mps", name="M", cores=2, memory_bytes=2**34, native_bf16=False, accelerators=1)
    monkeypatch.setattr(preflight, "inspect_machine", lambda settings: apple)
    asked = recipe.model_copy(update={"quantization": Quantization()})
    with pytest.raises(InputError, match="quantization: 4-bit weights need a CPU or CUDA"):
        preflight.preflight(asked, Settings(home=tmp_path))


@pytest.mark.slow
def test_what_four_stages_publish_computes_what_they_trained(
    prefect_api: None, wide_model: Path, tiny_data: Path, tmp_path: Path
) -> None:
    short = {"max_new_tokens": 4, "num_samples": 1}
    asked = tiny_recipe(wide_model, tiny_data, evaluation=short) | {"quantization": {}, "precision": "bf16"}
    assert run_align(Recipe.model_validate(asked), tmp_path).record.state == "completed"
    made, store = checkpoints(tmp_path), ArtifactStore(tmp_path)
    how = Quantization().model_dump(mode="json")
    for stage, path in made.items():
        manifest, loader = read_manifest(path), load_scorer if stage == "reward" else load_policy
        assert 0 < manifest.metrics["merge_relative_error"] <= 2e-2
        assert manifest.identity["quantization"] == how
        parent = store.locate(manifest.parents["policy"])
        assert parent
        trained = PeftModel.from_pretrained(loader(parent, torch.bfloat16, "cpu", Quantization()), path / "adapter")
        tokenizer = load_tokenizer(path)
        expected = outputs(compute_in_float32(trained), tokenizer)
        written = outputs(loader(path, torch.float32), tokenizer)
        assert (written - expected).norm() <= 2e-2 * expected.norm()
    told = {name.partition("-")[0]: each.identity for name, each in read_manifest(made["grpo"]).ancestors.items()}
    assert [told[stage]["quantization"] for stage in ("sft", "reward", "dpo")] == [how] * 3
