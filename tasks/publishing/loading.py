"""How others load what was exported, as the model card shows it."""

from collections.abc import Iterator

from models.publishing import Dossier, Export

_HERE = 'folder = "."  # this folder, or its id on a hub'
_POLICY, _SCORER = "AutoModelForCausalLM", "AutoModelForSequenceClassification"


def how_to_load(dossier: Dossier, export: Export) -> Iterator[str]:
    """The card's section on loading, paragraph by paragraph."""
    yield "## Loading"
    shown = {"merged": _merged, "adapter": _adapter, "gguf": _gguf}
    yield from shown[export.weights](dossier, export)


def _merged(dossier: Dossier, export: Export) -> Iterator[str]:
    model = _SCORER if dossier.stage == "reward" else _POLICY
    yield _python(
        f"from transformers import {model}, AutoTokenizer",
        _HERE,
        f'model = {model}.from_pretrained(folder, dtype="{export.dtype}")',
        "tokenizer = AutoTokenizer.from_pretrained(folder)",
    )
    if dossier.stage == "reward":
        yield "It gives one score a conversation (`model(**tokens).logits[:, 0]`); higher is better."
    else:
        yield "TRL's trainers take the folder as `model=`, and `vllm serve FOLDER` serves it."


def _adapter(dossier: Dossier, export: Export) -> Iterator[str]:
    is_scorer = dossier.stage == "reward"
    model, options = (_SCORER, ", num_labels=1") if is_scorer else (_POLICY, "")
    revision = f', revision="{export.base_revision}"' if export.base_revision else ""
    base = export.base_model if export.base_revision else "BASE"
    if not export.base_revision:
        yield (
            f"The adapter belongs on `{export.base_model}`, which is on no hub. Its maker can write it with "
            f"`align export {export.base_model} BASE`; on another model the adapter gives nonsense."
        )
    yield _python(
        "from peft import PeftModel",
        f"from transformers import {model}, AutoTokenizer",
        _HERE,
        f'base = {model}.from_pretrained("{base}"{options}{revision})',
        "model = PeftModel.from_pretrained(base, folder)",
        "tokenizer = AutoTokenizer.from_pretrained(folder)",
    )
    if "quantization" in dossier.manifest.identity:
        yield "It was trained on the base's weights rounded to 4 bits, and fits those best."
    if not is_scorer:
        yield f"`vllm serve {base} --enable-lora --lora-modules {dossier.title}=FOLDER` serves it."


def _gguf(dossier: Dossier, export: Export) -> Iterator[str]:
    file = next(entry.path for entry in export.files if entry.path.endswith(".gguf"))
    yield _python(
        "from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig",
        _HERE,
        "options = {",
        f'    "gguf_file": "{file}",',
        '    "quantization_config": GgufConfig(dequantize=True),',
        "}",
        f'model = AutoModelForCausalLM.from_pretrained(folder, dtype="{export.dtype}", **options)',
        f'tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file="{file}")',
    )
    yield f"It is laid out for llama.cpp (`llama-cli -m {file}`); it has been read back with Transformers alone."


def _python(*lines: str) -> str:
    return "\n".join(["```python", *lines, "```"])
