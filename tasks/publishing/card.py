"""The model card of an exported folder: its metadata for the hub, and what people read."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from models.artifacts import Ancestor
from models.publishing import DatasetUse, Dossier, Export, Judgement
from tasks.differing import flattened
from tasks.publishing.loading import how_to_load

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

PIPELINE = "alignment-pipeline"
_PURPOSES = {
    "base": "the base model",
    "sft": "supervised fine-tuning on demonstrations",
    "reward": "a reward model, trained on preference pairs",
    "dpo": "Direct Preference Optimization",
    "grpo": "Group Relative Policy Optimization",
}
_NO_ADVICE = (
    "These are the words of publishers and of the recipe, put together by a small table; they are no legal advice. "
    "A trained model is taken for a derived work of its data here, which may be more than the law asks for."
)


def model_card(dossier: Dossier, export: Export) -> str:
    """The text of README.md."""
    from huggingface_hub import ModelCard

    parts = [f"# {dossier.title}", *_introduction(dossier, export), *how_to_load(dossier, export), *_lineage(dossier)]
    parts += [*_stages(dossier), *_data(dossier), *_figures(dossier), *_licences(export), *_making(dossier, export)]
    return str(ModelCard(f"---\n{_metadata(dossier, export)}\n---\n\n" + "\n\n".join(parts) + "\n"))


def _metadata(dossier: Dossier, export: Export) -> str:
    from huggingface_hub import ModelCardData

    is_scorer = dossier.stage == "reward"
    based_on = dossier.hub_base or None
    relation = {"merged": "finetune", "adapter": "adapter", "gguf": "quantized"}[export.weights]
    data = ModelCardData(
        license=export.licensing.license,
        license_name=export.licensing.license_name or None,
        base_model=based_on,
        base_model_relation=relation if based_on else None,
        library_name={"merged": "transformers", "adapter": "peft", "gguf": None}[export.weights],
        pipeline_tag="text-classification" if is_scorer else "text-generation",
        tags=[PIPELINE, "trl", dossier.stage, *(["reward-model"] if is_scorer else []), *_gguf_tag(export)],
        datasets=list(dict.fromkeys(data.source for data in dossier.datasets if data.on_hub)) or None,
        model_name=dossier.title,
        eval_results=[*_eval_results(dossier)] or None,
    )
    return str(data.to_yaml())


def _gguf_tag(export: Export) -> list[str]:
    return ["gguf"] if export.weights == "gguf" else []


def _eval_results(dossier: Dossier) -> Iterator["EvalResult"]:
    from huggingface_hub import EvalResult

    task = "text-classification" if dossier.stage == "reward" else "text-generation"
    for judgement in dossier.judgements:
        for name, figure in judgement.figures.items():
            rows = _rows_behind(name, judgement)
            yield EvalResult(
                task_type=task,
                dataset_type=rows.source if rows else "unknown",
                dataset_name=f"{rows.source} ({rows.name})" if rows else "unknown",
                dataset_revision=(rows.revision or None) if rows else None,
                metric_type=name.partition("/")[0],
                metric_name=name.replace("_", " "),
                metric_value=figure.value,
                metric_args={"confidence_interval_95": [figure.low, figure.high], "rows": figure.n},
            )


def _rows_behind(figure: str, judgement: Judgement) -> DatasetUse | None:
    place, _, name = figure.rpartition(": ")
    use = "preferences" if name.startswith(("preference", "implicit")) else "prompts"
    use = f"{place}: {use}" if place else use
    return next((data for data in judgement.datasets if data.use == use), None)


def _introduction(dossier: Dossier, export: Export) -> Iterator[str]:
    what = {"merged": "The whole model", "adapter": "The adapter of the last stage", "gguf": "The whole model as GGUF"}
    purpose = _PURPOSES.get(dossier.stage, dossier.stage)
    version = export.code.get(PIPELINE, "of unknown version")
    yield f"{what[export.weights]} in {export.dtype}: {purpose}. Written by {PIPELINE} {version}."
    if export.relative_error is not None:
        yield (
            f"What was written has been read back and compared: its outputs differ from the checkpoint's by "
            f"{export.relative_error:.2g} of their norm."
        )


def _lineage(dossier: Dossier) -> Iterator[str]:
    yield "## Lineage"
    yield "From the base model on; every line is made from lines above it."
    rows = [
        (name, _PURPOSES.get(_stage(each), _stage(each)), _made_from(each), each.fingerprint[:16], each.created[:10])
        for name, each in dossier.models.items()
    ]
    yield _table(("name", "what it is", "made from", "fingerprint", "made on"), rows)
    if dossier.base:
        facts = {key: value for key, value in dossier.base.origin.items() if value is not None}
        yield "The base model:"
        yield _table(("", ""), [(key, f"`{value}`") for key, value in facts.items()])
    if dossier.missing:
        yield f"Nothing is known any more of {', '.join(dossier.missing)}."


def _made_from(each: Ancestor) -> str:
    return ", ".join(f"{parent} ({role.replace('_', ' ')})" for role, parent in each.parents.items())


def _stage(each: Ancestor) -> str:
    return str(each.identity.get("stage", each.kind))


def _stages(dossier: Dossier) -> Iterator[str]:
    """One column for each stage, since most of their settings have the same names."""
    trained = {name: each for name, each in dossier.models.items() if each.kind == "checkpoint"}
    settings = {name: dict(_settings(each)) for name, each in trained.items()}
    if trained:
        keys = dict.fromkeys(key for values in settings.values() for key in values)
        yield "## Training"
        yield _table(("", *trained), [(key, *(values.get(key, "") for values in settings.values())) for key in keys])
    prompts = dict.fromkeys(each.origin.get("system_prompt") for each in trained.values())
    for prompt in filter(None, prompts):
        yield f"System prompt, put before conversations without one: `{_cell(prompt)}`"


def _settings(each: Ancestor) -> Iterator[tuple[str, Any]]:
    yield from flattened(each.identity.get("hyperparameters", {}))
    yield from flattened(
        {key: each.identity[key] for key in ("seed", "precision", "quantization") if key in each.identity}
    )


def _data(dossier: Dossier) -> Iterator[str]:
    held_out = [data for judgement in dossier.judgements for data in judgement.datasets]
    rows = dict.fromkeys(_data_row(data) for data in [*dossier.datasets, *held_out])
    if rows:
        yield "## Data"
        columns = ("used for", "source", "revision", "rows", "rules", "SHA-256 of the rows", "licence")
        yield _table(columns, [*rows])


def _data_row(data: DatasetUse) -> tuple[Any, ...]:
    files = "".join(f", {name} `{digest[:16]}`" for name, digest in data.files.items())
    rules = ", ".join(f"{key.replace('_', ' ')}: {value}" for key, value in data.rules.items() if value)
    source = f"{data.source} ({data.split})" if data.on_hub else f"local file{files}" if files else data.source
    count = data.rows if data.rows is not None else "unknown"
    return (data.use, source, data.revision, count, rules, f"`{data.sha256}`", data.license or "unknown")


def _figures(dossier: Dossier) -> Iterator[str]:
    yield "## Held-out figures"
    if not dossier.judgements:
        yield "This checkpoint has not been judged on held-out rows."
        return
    yield "Means with 95 % confidence intervals."
    rows = [
        (name.replace("_", " "), f"{figure.value:.3f}", f"{figure.low:.3f} to {figure.high:.3f}", figure.n, each.id)
        for each in dossier.judgements
        for name, figure in each.figures.items()
    ]
    yield _table(("figure", "value", "95 % interval", "rows", "evaluation"), rows)


def _licences(export: Export) -> Iterator[str]:
    yield "## Licence"
    claims = export.licensing.claims
    yield _table(("source", "licence", "kind"), [(one.what, one.license or "unknown", one.family) for one in claims])
    if export.licensing.cautions:
        yield "\n".join(f"- {_cell(caution)}" for caution in export.licensing.cautions)
    yield _NO_ADVICE


def _making(dossier: Dossier, export: Export) -> Iterator[str]:
    manifest = dossier.manifest
    yield "## How it was made"
    code = [(f"{PIPELINE}, {when}", _version(said)) for when, said in _codes(dossier, export)]
    yield _table(("software", "version"), [*code, *manifest.versions.items()])
    yield (
        "`lineage.json` is the checkpoint's manifest with its whole ancestry, `bom.cdx.json` the same as a CycloneDX "
        "bill of materials, and `export.json` lists every file with its digest: `align verify` compares them."
    )


def _codes(dossier: Dossier, export: Export) -> Iterator[tuple[str, dict[str, str]]]:
    yield "training", dossier.manifest.code
    yield "export", export.code


def _version(code: dict[str, str]) -> str:
    commit = f", commit `{code['commit']}`" if "commit" in code else ""
    changed = " with changes" if code.get("changed") == "true" else ""
    return f"{code.get(PIPELINE, 'unknown')}{commit}{changed}"


def _table(headings: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines)


def _cell(value: Any) -> str:
    """A value that neither ends a table's cell nor its line."""
    return " ".join(str(value).split()).replace("|", "\\|").replace("<", "&lt;")
