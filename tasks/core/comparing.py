"""How far the weights of two models are apart."""

from math import inf, sqrt
from pathlib import Path

import torch
from safetensors import safe_open


def relative_difference(model: Path, reference: Path) -> float:
    """Norm of the difference of all weights, relative to the reference's; infinite where names or shapes differ."""
    differences = squares = 0.0
    ours, theirs = _tensors(model), _tensors(reference)
    if ours.keys() != theirs.keys():
        return inf
    for name in theirs:
        made, expected = _read(ours[name], name), _read(theirs[name], name)
        if made.shape != expected.shape:
            return inf
        differences += float((made - expected).square().sum())
        squares += float(expected.square().sum())
    return sqrt(differences / squares) if squares else (inf if differences else 0.0)


def _tensors(folder: Path) -> dict[str, Path]:
    """The file that each tensor of a model lies in, by the tensor's name."""
    found: dict[str, Path] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as content:
            found |= dict.fromkeys(content.keys(), file)
    return found


def _read(file: Path, name: str) -> torch.Tensor:
    with safe_open(file, framework="pt") as content:
        tensor: torch.Tensor = content.get_tensor(name)
    return tensor.double()
