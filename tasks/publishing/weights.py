"""The weights of an exported folder: copied, converted to another number format or to GGUF, or the adapter alone."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from models.artifacts import Precision
from models.contract import Contract
from models.errors import InputError
from models.publishing import DTYPES, PRECISIONS, Dossier, Dtype, ExportRequest
from tasks.alarms import ALARMS
from tasks.child import run_in_child
from tasks.child_main import ChildOptions
from tasks.core import entry
from tasks.files import replace_file

_ADAPTER = "adapter"
_ADAPTER_WEIGHTS, _ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
_OURS = ("history.jsonl", ALARMS, "reward_failures.json")
"""Files of a checkpoint that tell of its training and are no part of the model."""
_MODEL = ("config.json", "generation_config.json", "model.safetensors.index.json")
_GGUF_NAMES: dict[Precision, str] = {"fp32": "F32", "bf16": "BF16", "fp16": "F16"}
_SAFETENSORS_NAMES: dict[str, Dtype] = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}

Tell = Callable[[str], None]


class Written(Contract):
    """What was written, as `export.json` tells it."""

    dtype: Dtype
    """Number format of the weights."""
    relative_error: float | None = None
    """Difference of outputs from the checkpoint's; none: copied."""
    base_model: str = ""
    """What an adapter belongs on."""
    base_revision: str = ""
    """The hub's commit of that."""


def write_weights(
    path: Path, dossier: Dossier, folder: Path, request: ExportRequest, options: ChildOptions, tell: Tell
) -> Written:
    """Write a checkpoint's weights with what is needed to load them, such as the tokenizer.

    Args:
        path: The finished, undamaged folder.
        dossier: What is known of it.
        folder: Where to write; it is there and empty.
        request: In which form and number format.
        options: Threads and limits of the process that converts.
        tell: Gets progress.

    Raises:
        InputError: the checkpoint has no such form.
        StageError: what was written differs from the checkpoint.
    """
    if request.weights == "adapter":
        return _write_adapter(path, dossier, folder)
    published: Precision = dossier.manifest.identity["precision"]
    wanted = PRECISIONS[request.dtype] if request.dtype else published
    is_scorer = dossier.stage == "reward"

    def convert(door: Callable[..., float], *arguments: Any) -> Written:
        error = run_in_child(door, arguments, options, lambda report: tell(report["phase"]), lambda line: None)
        return Written(dtype=DTYPES[wanted], relative_error=error)

    if request.weights == "gguf":
        if is_scorer:
            raise InputError(f"{dossier.name} is a reward model, and GGUF has no place for its head; export it merged")
        file = folder / f"{dossier.title}-{_GGUF_NAMES[wanted]}.gguf"
        return convert(entry.convert_to_gguf, path, wanted, file)
    if wanted != published:
        return convert(entry.convert_weights, path, is_scorer, wanted, folder)
    tell("copying")
    for name in _model_files(dossier):
        shutil.copyfile(path / name, folder / name)
    return Written(dtype=DTYPES[published])


def _model_files(dossier: Dossier) -> Iterator[str]:
    """The files that make up the model, its tokenizer included."""
    for file in dossier.manifest.files:
        if not file.path.startswith(f"{_ADAPTER}/") and file.path not in _OURS:
            yield file.path


def _write_adapter(path: Path, dossier: Dossier, folder: Path) -> Written:
    """Copy adapter and tokenizer, and name the base as others know it."""
    if not (path / _ADAPTER / _ADAPTER_CONFIG).is_file():
        raise InputError(f"{dossier.title} has no adapter, since all its weights were trained; export it merged")
    for name in _model_files(dossier):
        if name not in _MODEL and not name.endswith(".safetensors"):
            shutil.copyfile(path / name, folder / name)
    shutil.copyfile(path / _ADAPTER / _ADAPTER_WEIGHTS, folder / _ADAPTER_WEIGHTS)
    config = json.loads((path / _ADAPTER / _ADAPTER_CONFIG).read_bytes())
    base, revision = _base_of_adapter(dossier) or (config["base_model_name_or_path"], "")
    named = config | {"base_model_name_or_path": base, "revision": revision or None}
    replace_file(folder / _ADAPTER_CONFIG, json.dumps(named, indent=2))
    return Written(dtype=_dtype(folder / _ADAPTER_WEIGHTS), base_model=base, base_revision=revision)


def _base_of_adapter(dossier: Dossier) -> tuple[str, str] | None:
    """Hub id and commit where the adapter was trained on the hub's model itself."""
    parent = dossier.lineage.get(dossier.manifest.parents.get("policy", ""))
    if parent and parent.kind == "base" and dossier.hub_base and parent.origin.get("commit"):
        return dossier.hub_base, str(parent.origin["commit"])
    return None


def _dtype(file: Path) -> Dtype:
    from safetensors import safe_open

    with safe_open(file, framework="numpy") as tensors:
        name = next(iter(tensors.keys()))
        return _SAFETENSORS_NAMES[tensors.get_slice(name).get_dtype()]
