"""Evaluation as a Prefect task: any model of a run on the same held-out rows, once for each model and set of rows."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from prefect import task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture
from prefect.runtime import task_run

from models.artifacts import Checkpoint, Dataset, Manifest, Stage
from models.evaluation import EvaluationResult
from models.fingerprint import fingerprint
from models.measurement import Evaluation, EvaluationSet
from models.recipe import Recipe
from models.stages import EvaluationInput, HeldOutSet
from tasks.child import run_in_child
from tasks.child_main import ChildOptions
from tasks.core import entry
from tasks.core.plan import BATCH_TOKENS, EvaluationPlan
from tasks.execution import Execution
from tasks.files import file_digest
from tasks.making import find_or_make
from tasks.provenance import provenance
from tasks.restoring import restore
from tasks.stage import LIGHT_RETRIES, worth_another_attempt
from tasks.store import ArtifactStore
from tasks.telling import Teller, publish


@task(
    name="evaluate",
    task_run_name="evaluate {stage.checkpoint.name}",
    cache_policy=NO_CACHE,
    retries=LIGHT_RETRIES,
    retry_condition_fn=worth_another_attempt,
)
def evaluate(stage: EvaluationInput, execution: Execution) -> EvaluationResult:
    """Measure a model on the held-out rows, unless that has been done.

    Batches shrink by themselves where memory runs out; where that is not enough, or the process was killed, all is
    tried again with half of the tokens in a batch. Sampled replies are then other draws of the same distribution.

    Raises:
        OutOfMemory, Killed, StageError: the evaluation failed.
    """

    def make(store: ArtifactStore, teller: Teller, options: ChildOptions) -> Manifest:
        return _measure_and_publish(stage, execution, store, teller, options)

    def read(path: Path, manifest: Manifest) -> EvaluationResult:
        return EvaluationResult(checkpoint=stage.checkpoint, **json.loads((path / "result.json").read_bytes()))

    title = f"evaluation-of-{stage.checkpoint.name}"
    return find_or_make("evaluation", stage.id, execution, make, read, title)


def held_out(recipe: Recipe, rows: Callable[..., PrefectFuture[Dataset] | State[Dataset]]) -> dict[str, Any]:
    """The fields of an evaluation's input that say what to measure on which rows.

    Args:
        recipe: Says it.
        rows: Begins to freeze a source's rows for a role, once the rules find what they read: `(source, role, rules)`.
            Those of all sets are begun before any is waited for.
    """
    asked = recipe.evaluation

    def begun(of: Evaluation | EvaluationSet) -> dict[str, Any]:
        verifier = of.verifier or asked.verifier
        return {
            "prompts": rows(of.prompts, "prompts", (verifier,)) if of.prompts else None,
            "preferences": rows(of.preferences, "preference") if of.preferences else None,
        }

    def finished(freezing: dict[str, Any]) -> dict[str, Any]:
        return {role: each.result() if each else None for role, each in freezing.items()}

    main, sets = begun(asked), [(one, begun(one)) for one in asked.sets]
    return {
        "spec": asked,
        **finished(main),
        "sets": tuple(
            HeldOutSet(name=one.name, verifier=one.verifier or asked.verifier, **finished(freezing))
            for one, freezing in sets
        ),
        "harness_sha256": _harness_digest(asked),
        "seed": recipe.seed,
    }


def _harness_digest(asked: Evaluation) -> str:
    """SHA-256 over the harness's own task files; empty where there are none."""
    if not (asked.harness and asked.harness.include_path):
        return ""
    folder = Path(asked.harness.include_path)
    digests = {str(file.relative_to(folder)): file_digest(file) for file in sorted(folder.rglob("*")) if file.is_file()}
    return fingerprint(digests) if digests else ""


def judge_inputs(
    recipe: Recipe, made: Mapping[Stage, Checkpoint], rivals: Iterable[Checkpoint], heldout: dict[str, Any]
) -> list[EvaluationInput]:
    """What to measure of a run's models, and of the checkpoints that the last one must beat.

    Args:
        recipe: Says which stage starts from which.
        made: The run's checkpoints by stage.
        rivals: Other policies; they have no parent here.
        heldout: The fields that say on which rows.
    """

    def measured_with(stage: Stage) -> dict[str, Checkpoint | None]:
        if stage == "reward":
            return {}
        parent = made[recipe.parent_of(stage)] if stage != "base" else None
        return {"parent": parent, "reward_model": made.get("reward")}

    own = [EvaluationInput(checkpoint=one, **measured_with(stage), **heldout) for stage, one in made.items()]
    scorer = {"reward_model": made.get("reward")}
    return own + [EvaluationInput(checkpoint=one, **scorer, **heldout) for one in rivals]


def _measure_and_publish(
    stage: EvaluationInput, execution: Execution, store: ArtifactStore, teller: Teller, options: ChildOptions
) -> Manifest:
    name = stage.id
    for model in filter(None, (stage.checkpoint, stage.parent, stage.reward_model)):
        restore(
            store, model.path, f"evaluation {name}", lambda: nullcontext(options),
            lambda doing: teller.report({"phase": doing}),
        )  # fmt: skip
    folder = store.partial("evaluation", name)
    attempt = task_run.run_count or 1
    plan = EvaluationPlan(
        device=execution.machine.device,
        batch_tokens=BATCH_TOKENS // 2 ** (attempt - 1),
        share_prompts=execution.settings.share_prompts,
    )
    result: EvaluationResult = run_in_child(
        entry.evaluate,
        (stage, plan, folder),
        options,
        teller.report,
        teller.line,
    )
    manifest = store.publish(
        folder,
        name=name,
        kind="evaluation",
        fingerprint=stage.fingerprint,
        identity=stage.identity(),
        parents={role: parent.path.name for role, parent in stage.parents().items()},
        metrics={name: estimate.value for name, estimate in result.estimates().items()},
        **provenance(execution),
    )
    _show(stage, result)
    return manifest


def _show(stage: EvaluationInput, result: EvaluationResult) -> None:
    """The figures with their intervals as a table in the Prefect UI."""
    rows = [
        {
            "metric": name,
            "value": f"{figure.value:.3f}",
            "95 % interval": f"{figure.low:.3f} to {figure.high:.3f}",
            "n": figure.n,
        }
        for name, figure in result.estimates().items()
    ]
    name = stage.checkpoint.name
    publish(create_table_artifact, rows, key=f"evaluation-{name}", description=f"Held-out figures of {name}")


def show_figures(results: Sequence[EvaluationResult]) -> None:
    """Show the figures of several models side by side as a table in the Prefect UI."""
    figures = [result.estimates() for result in results]
    rows = [
        {"metric": name}
        | {one.checkpoint.name: str(of.get(name, "-")) for one, of in zip(results, figures, strict=True)}
        for name in dict.fromkeys(name for of in figures for name in of)
    ]
    publish(create_table_artifact, rows, key="held-out-figures", description="Held-out figures with 95 % intervals")
