"""prefect.yaml: every deployment can be started as it stands, from anywhere, and says what it is."""

import json
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import yaml
from prefect import Flow
from prefect.flows import load_flow_from_entrypoint
from prefect.utilities.callables import parameter_schema
from prefect.utilities.importtools import import_object
from prefect.utilities.schema_tools.validation import validate
from prefect.utilities.templating import apply_values

from models.recipe import Recipe
from settings.deploying import deployed
from settings.recipes import load_recipe

ROOT = Path(__file__).resolve().parent.parent
NAMES = (
    "align/on-demand",
    "align/quickstart",
    "retrain/weekly",
    "retrain/on-new-data",
    "evaluate/on-demand",
    "promote/approve",
)
WANTED = {
    "align/on-demand": {"recipe": {"sft": {"dataset": {"path": "a.jsonl"}}, "evaluation": {"prompts": {"path": "b"}}}},
    "evaluate/on-demand": {"checkpoint": "grpo"},
    "promote/approve": {"checkpoint": "grpo"},
}
"""What somebody must fill in before it can start."""


@pytest.fixture(scope="module")
def deployments() -> dict[str, dict[str, Any]]:
    """The deployments as `prefect deploy` makes them, by flow and name."""
    document = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    ((step, inputs),) = document["build"][0].items()
    name = inputs.pop("id")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        made = {name: import_object(step)(**inputs)}
    filled = [apply_values(one, made) for one in document["deployments"]]
    return {f"{one['entrypoint'].rpartition(':')[2]}/{one['name']}": one for one in filled}


def flow_of(deployment: dict[str, Any]) -> Flow[..., Any]:
    return load_flow_from_entrypoint(str(ROOT / deployment["entrypoint"]))


def test_these_are_the_deployments(deployments: dict[str, dict[str, Any]]) -> None:
    assert tuple(deployments) == NAMES
    assert {f"{flow_of(one).name}/{one['name']}" for one in deployments.values()} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_its_parameters_are_its_flows(deployments: dict[str, dict[str, Any]], name: str) -> None:
    flow, parameters = flow_of(deployments[name]), deployments[name].get("parameters", {}) | WANTED.get(name, {})
    validate(parameters, parameter_schema(flow).model_dump(), raise_on_error=True)
    validated = flow.validate_parameters(parameters)
    assert set(parameters) <= set(validated)


@pytest.mark.parametrize("name", NAMES)
def test_it_says_what_it_is(deployments: dict[str, dict[str, Any]], name: str) -> None:
    one = deployments[name]
    assert len(one["description"]) > 20
    assert one["version"] == "0.1.0"
    assert "align" in one["tags"]
    assert one["work_pool"]["name"] == "local"
    assert one["work_pool"]["job_variables"]["env"]


def test_schedules_have_a_time_zone_and_wait_to_be_switched_on(deployments: dict[str, dict[str, Any]]) -> None:
    from prefect.client.schemas.schedules import CronSchedule

    schedules = [schedule for one in deployments.values() for schedule in one.get("schedules", ())]
    assert len(schedules) == 1
    for schedule in schedules:
        CronSchedule(cron=schedule["cron"], timezone=schedule["timezone"])
        ZoneInfo(schedule["timezone"])
        assert schedule["active"] is False


def test_retrainings_do_not_pile_up(deployments: dict[str, dict[str, Any]]) -> None:
    limits = {name: one["concurrency_limit"] for name, one in deployments.items() if name.startswith("retrain/")}
    assert limits == {
        "retrain/weekly": {"limit": 1, "collision_strategy": "CANCEL_NEW"},
        "retrain/on-new-data": {"limit": 1, "collision_strategy": "ENQUEUE"},
    }


def test_the_quickstart_reaches_a_deployment_whole(
    deployments: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    parameters = deployments["align/quickstart"]["parameters"]
    assert parameters["recipe_name"] == "quickstart"
    path = parameters["recipe"]["sft"]["dataset"]["path"]
    assert path == "settings/quickstart/sft.jsonl"
    recipe = Recipe.model_validate(parameters["recipe"])
    assert recipe.model_dump(mode="json") == deployed("quickstart")["recipe"]
    assert recipe.grpo == load_recipe("quickstart").grpo.model_copy(update={"dataset": recipe.grpo.dataset})  # type: ignore[union-attr]


@pytest.mark.parametrize("pool", ["docker", "kubernetes"])
def test_base_job_templates_fit_the_image(pool: str) -> None:
    template = json.loads((ROOT / "deploy" / f"{pool}-base-job-template.json").read_text())
    properties = template["variables"]["properties"]
    used = set(re.findall(r"{{ (\w+) }}", json.dumps(template["job_configuration"])))
    assert used == set(properties)
    assert all(one["title"] and one["description"] for one in properties.values())
    assert {"name", "command", "env", "labels"} <= used
    assert properties["image"]["default"] == f"alignment-pipeline:{version('alignment-pipeline')}"


def test_the_image_holds_all_packages_and_is_nobodys_root() -> None:
    lines = (ROOT / "deploy" / "Dockerfile").read_text().splitlines()
    copied = {word.rstrip("/") for line in lines if line.startswith("COPY ") for word in line.split()[1:]}
    assert {"flows", "tasks", "models", "settings", "requirements.lock", "requirements-model.lock"} <= copied
    assert "RUN make install" in lines
    assert "USER 10001" in lines


@pytest.mark.slow
def test_every_entrypoint_loads_from_a_workers_own_folder(
    deployments: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    entrypoints = [str(ROOT / one["entrypoint"]) for one in deployments.values()]
    code = (
        "import sys; from prefect.flows import load_flow_from_entrypoint\n"
        "print(*(load_flow_from_entrypoint(each).name for each in sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, *entrypoints], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [name.partition("/")[0] for name in NAMES]
