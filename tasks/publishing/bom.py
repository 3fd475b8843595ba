"""The machine-readable bill of materials of an exported folder: CycloneDX 1.6 with a model card (ML-BOM).

Written as plain JSON, since cyclonedx-python-lib has no model cards; the tests validate it against the schema that the
library ships.
"""

import re
import uuid
from collections.abc import Iterable
from typing import Any

from models.artifacts import Ancestor, FileEntry
from models.evaluation import Estimate
from models.publishing import DatasetUse, Dossier, Export
from tasks.differing import flattened
from tasks.publishing.licences import spdx_identifier

Json = dict[str, Any]

_PIPELINE = "alignment-pipeline"
_APPROACHES = {"sft": "supervised", "reward": "supervised", "dpo": "supervised", "grpo": "reinforcement-learning"}
_DIGEST = re.compile(r"[0-9a-f]{64}")


def bill_of_materials(dossier: Dossier, export: Export) -> Json:
    """The document, as JSON data; `export` lists the files written so far."""
    above = {name: each for name, each in dossier.lineage.items() if name != dossier.name}
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{_serial_number(export)}",
        "version": 1,
        "metadata": {
            "timestamp": export.created,
            "tools": {"components": [_pipeline(export)]},
            "component": _exported(dossier, export),
        },
        "components": [_ancestor(name, each, dossier) for name, each in above.items()],
        "dependencies": [
            {"ref": name, "dependsOn": sorted(set(each.parents.values()) & dossier.lineage.keys())}
            for name, each in dossier.lineage.items()
        ],
    }


def _serial_number(export: Export) -> uuid.UUID:
    """The same for the same files."""
    return uuid.uuid5(uuid.NAMESPACE_OID, "".join(entry.path + entry.sha256 for entry in export.files))


def _pipeline(export: Export) -> Json:
    version = export.code.get(_PIPELINE, "unknown")
    commit = [{"name": "commit", "value": export.code["commit"]}] if "commit" in export.code else []
    return {"type": "application", "name": _PIPELINE, "version": version, "properties": commit}


def _exported(dossier: Dossier, export: Export) -> Json:
    named = export.licensing.license_name or export.licensing.license
    measured = {} if export.relative_error is None else {"relative_error": export.relative_error}
    facts = {"weights": export.weights, "dtype": export.dtype, "created": dossier.manifest.created} | measured
    return {
        "type": "machine-learning-model",
        "bom-ref": dossier.name,
        "name": dossier.title,
        "version": export.fingerprint,
        "licenses": _licenses(named),
        "components": _files(export.files),
        "properties": _properties(facts | dossier.manifest.versions),
        "modelCard": _model_card(dossier),
    }


def _model_card(dossier: Dossier) -> Json:
    is_scorer = dossier.stage == "reward"
    parameters = {
        "task": "reward-modeling" if is_scorer else "text-generation",
        "architectureFamily": "transformer",
        "datasets": [{"ref": name} for name in dict.fromkeys(data.name for data in dossier.datasets)],
        "inputs": [{"format": "text"}],
        "outputs": [{"format": "score" if is_scorer else "text"}],
    }
    approach = _APPROACHES.get(dossier.stage)
    metrics = [_metric(name, each) for judged in dossier.judgements for name, each in judged.figures.items()]
    return {
        "modelParameters": parameters | ({"approach": {"type": approach}} if approach else {}),
        "quantitativeAnalysis": {"performanceMetrics": metrics},
        "considerations": {"technicalLimitations": [*dossier.licensing.cautions]},
        "properties": [_property(*fact) for fact in flattened(dossier.manifest.identity.get("hyperparameters", {}))],
    }


def _metric(name: str, figure: Estimate) -> Json:
    kind, _, part = name.partition("/")
    interval = {"lowerBound": str(figure.low), "upperBound": str(figure.high)}
    metric = {"type": kind, "value": str(figure.value), "confidenceInterval": interval}
    return metric | ({"slice": part} if part else {})


def _ancestor(name: str, each: Ancestor, dossier: Dossier) -> Json:
    if each.kind == "dataset":
        return _dataset(name, next(data for data in dossier.datasets if data.name == name))
    origin = {key: value for key, value in each.origin.items() if isinstance(value, str)}
    files = {key: value for key, value in origin.items() if _DIGEST.fullmatch(value)}
    said = {key: value for key, value in origin.items() if key not in files}
    component: Json = {
        "type": "machine-learning-model",
        "bom-ref": name,
        "name": str(origin.get("name", name)),
        "version": origin.get("commit", each.fingerprint),
        "properties": _properties(said | {"fingerprint": each.fingerprint, "created": each.created}),
        "components": [_file(file, digest) for file, digest in files.items()],
    }
    if each.kind == "checkpoint":
        card = {"properties": [_property(*fact) for fact in flattened(each.identity.get("hyperparameters", {}))]}
        return component | {"modelCard": card}
    purl = {"purl": f"pkg:huggingface/{origin['name']}@{origin['commit']}"} if _is_pinned_on_hub(origin) else {}
    return component | purl | {"licenses": _licenses(origin.get("license"))}


def _is_pinned_on_hub(origin: Json) -> bool:
    return origin.get("source") == "hub" and "commit" in origin


def _dataset(name: str, data: DatasetUse) -> Json:
    rules = {f"rule {key}": value for key, value in data.rules.items() if value is not None}
    facts = {"split": data.split, "revision": data.revision, "rows": data.rows} | rules
    return {
        "type": "data",
        "bom-ref": name,
        "name": data.source,
        "version": data.revision or data.sha256,
        "hashes": _hashes(data.sha256),
        "licenses": _licenses(data.license),
        "components": [_file(file, digest) for file, digest in data.files.items()],
        "data": [{"type": "dataset", "name": data.source, "contents": {"properties": _properties(facts)}}],
    }


def _files(files: Iterable[FileEntry]) -> list[Json]:
    return [_file(entry.path, entry.sha256) for entry in files]


def _file(name: str, digest: str) -> Json:
    return {"type": "file", "name": name, "hashes": _hashes(digest)}


def _hashes(digest: str) -> list[Json]:
    return [{"alg": "SHA-256", "content": digest}] if digest else []


def _licenses(said: str | None) -> list[Json]:
    """A licence by its SPDX identifier or expression, else by its own name; `unknown` where nobody says."""
    known = spdx_identifier(said) if said else None
    if known is None:
        return [{"license": {"name": said or "unknown"}}]
    return [{"expression": known}] if " " in known else [{"license": {"id": known}}]


def _properties(facts: Json) -> list[Json]:
    return [_property(name, value) for name, value in facts.items() if value not in (None, "")]


def _property(name: str, value: Any) -> Json:
    return {"name": f"{_PIPELINE}:{name}", "value": str(value)}
