"""What a recipe and the settings need beside the pipeline itself: optional packages, servers, rivals for a gate."""

import importlib.util
from pathlib import Path

from models.recipe import Recipe
from models.trl_options import SOLVED_BY_TRL
from settings.settings import Settings
from tasks.data.checking import noting
from tasks.gate import check_condition, find_rivals
from tasks.remote.opening import open_store
from tasks.trackers import check_trackers


def check_libraries(recipe: Recipe, settings: Settings, problems: list[str]) -> None:
    """Refuse trackers and verifiers whose packages are not installed, and measurements that cannot be made."""
    check_trackers(settings.report_to, problems)
    _check_measuring(recipe, settings, problems)
    rewards = recipe.grpo.rewards if recipe.grpo else ()
    needed = {recipe.evaluation.verifier.kind, *(reward.kind for reward in rewards)}
    needed |= {"math_verify" for reward in rewards if reward.trl in SOLVED_BY_TRL}
    needed |= {one.verifier.kind for one in recipe.evaluation.sets if one.verifier}
    if "math_verify" in needed and not importlib.util.find_spec("math_verify"):
        problems.append("math_verify is not installed; run `pip install math-verify`, or use `exact_answer`")


def _check_measuring(recipe: Recipe, settings: Settings, problems: list[str]) -> None:
    """Refuse a judge or benchmarks that cannot be reached or are not installed, and a gate that nothing can open."""
    asked = {"judge": ("openai", recipe.evaluation.judge), "harness": ("lm_eval", recipe.evaluation.harness)}
    for extra, (package, section) in asked.items():
        if section and not importlib.util.find_spec(package):
            problems.append(f"evaluation.{extra}: not installed; run `pip install 'alignment-pipeline[{extra}]'`")
    harness = recipe.evaluation.harness
    if harness and harness.include_path and not Path(harness.include_path).is_dir():
        problems.append(
            f"evaluation.harness.include_path: {harness.include_path} is no folder; name one with task files"
        )
    if recipe.evaluation.judge and not settings.judge_url:
        problems.append("evaluation.judge: no server; set ALIGN_JUDGE_URL, such as http://localhost:8000/v1")
    if recipe.gate:
        for condition in recipe.gate.conditions:
            with noting(problems):
                check_condition(condition, recipe)
        with noting(problems):
            find_rivals(recipe, open_store(settings))
