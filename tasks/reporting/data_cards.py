"""Datasets on cards: what each is for, where it is from, how many rows it has, and what was done to them."""

from collections.abc import Mapping
from dataclasses import dataclass

from models.artifacts import Manifest
from tasks.reporting.words import STAGE_NAMES


@dataclass(frozen=True)
class DataCard:
    """A dataset."""

    name: str
    use: str
    """What it was used for."""
    facts: dict[str, str]


def data_cards(manifests: Mapping[str, Manifest]) -> list[DataCard]:
    """A card for each dataset among the manifests; what no checkpoint among them was trained on was held out."""
    trained: dict[str, list[str]] = {}
    for manifest in manifests.values():
        if "dataset" in manifest.parents:
            trained.setdefault(manifest.parents["dataset"], []).append(STAGE_NAMES[manifest.identity["stage"]])
    datasets = {name: manifest for name, manifest in manifests.items() if manifest.kind == "dataset"}
    return [_card(name, manifest, trained.get(name, [])) for name, manifest in datasets.items()]


def _card(name: str, manifest: Manifest, trained: list[str]) -> DataCard:
    origin = manifest.origin
    rules = origin.get("rules", {})
    facts = {
        "Format": str(origin.get("recognised", "")),
        "Rows": str(int(manifest.metrics.get("rows", 0))),
        "Duplicates left out": str(int(manifest.metrics.get("duplicates_dropped", 0))),
        "Split": str(origin.get("split", "")),
        "Revision": str(origin.get("commit") or origin.get("revision") or ""),
        "Licence": str(origin.get("license") or "not stated"),
        "System prompt": str(rules.get("system_prompt") or ""),
        "Digest": manifest.fingerprint[:16],
    }
    use = f"Trains {' and '.join(trained)}" if trained else "Held out"
    return DataCard(str(origin.get("path", name)), use, {key: value for key, value in facts.items() if value})
