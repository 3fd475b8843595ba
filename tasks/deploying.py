"""Putting the deployments of `prefect.yaml` on the server: once for each version, and with people's switches kept."""

import hashlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import yaml
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import VariableCreate, VariableUpdate, WorkPoolCreate
from prefect.client.schemas.filters import WorkPoolFilter, WorkPoolFilterName
from prefect.client.schemas.objects import DeploymentSchedule
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound

from models.errors import StageError
from tasks.operations import DEPLOYMENTS_FILE, POOL, Operations

_VARIABLE = "align_deployed"
"""Prefect variable that tells which version of the deployments the server has."""
_MADE_FROM = ("flows/*.py", "models/*.py", "settings/recipes/*.yaml")
"""Files that decide what the deployments' forms look like, and what they are filled with."""


def ensure_pool(client: SyncPrefectClient) -> bool:
    """Create the work pool; whether that was needed."""
    try:
        client.read_work_pool(POOL)
    except ObjectNotFound:
        try:
            client.create_work_pool(WorkPoolCreate(name=POOL, type="process"))
        except ObjectAlreadyExists:
            return False
        return True
    return False


def deployments_version(root: Path) -> str:
    """Digest of everything that the deployments on a server depend on: their file, forms, recipes and folder."""
    digest = hashlib.sha256(str(root).encode())
    named = [root / recipe for recipe in _recipes(root) if (root / recipe).is_file()]
    made_from = [path for files in _MADE_FROM for path in sorted(root.glob(files))]
    for path in (root / DEPLOYMENTS_FILE, *made_from, *named):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _recipes(root: Path) -> Iterator[str]:
    """What `prefect.yaml` names as recipes: files, or names of shipped ones."""
    for step in yaml.safe_load((root / DEPLOYMENTS_FILE).read_text()).get("build") or ():
        yield from (str(options["recipe"]) for options in step.values() if "recipe" in options)


def wanted_deployments(root: Path) -> list[str]:
    """Names of the deployments in `prefect.yaml`, flow first: `align/on-demand`."""
    written = yaml.safe_load((root / DEPLOYMENTS_FILE).read_text())["deployments"]
    return [_full_name(each["entrypoint"], each["name"]) for each in written]


def full_name(deployment: DeploymentResponse) -> str:
    """A deployment's name as people use it, flow first."""
    return _full_name(deployment.entrypoint or "", deployment.name)


def _full_name(entrypoint: str, name: str) -> str:
    return f"{entrypoint.rpartition(':')[2]}/{name}"


def read_deployments(client: SyncPrefectClient) -> list[DeploymentResponse]:
    """The deployments that the pool's worker serves."""
    return client.read_deployments(work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[POOL])), limit=200)


def is_deployed(client: SyncPrefectClient, root: Path) -> bool:
    """Whether the server has this version of every deployment."""
    told = client.read_variable_by_name(_VARIABLE)
    there = {*map(full_name, read_deployments(client))}
    return bool(told and told.value == deployments_version(root) and there >= {*wanted_deployments(root)})


def deploy(client: SyncPrefectClient, operations: Operations, say: Callable[[str], None]) -> bool:
    """Deploy what the server does not have in this version; whether that was needed.

    Raises:
        StageError: Prefect refuses it.
    """
    if is_deployed(client, operations.root):
        return False
    switched = dict(_switches(read_deployments(client)))
    done = subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"],
        cwd=operations.root,
        env=operations.client_environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        said = "\n".join((done.stdout + done.stderr).strip().splitlines()[-12:])
        raise StageError(f"`prefect deploy --all` failed in {operations.root}:\n{said}")
    _restore(client, switched, say)
    version = deployments_version(operations.root)
    if client.read_variable_by_name(_VARIABLE):
        client.update_variable(VariableUpdate(name=_VARIABLE, value=version))
    else:
        client.create_variable(VariableCreate(name=_VARIABLE, value=version))
    return True


def _switches(deployments: list[DeploymentResponse]) -> Iterator[tuple[tuple[str, str], DeploymentSchedule]]:
    """Each schedule, known by its deployment and its own name."""
    for deployment in deployments:
        for schedule in deployment.schedules:
            yield (full_name(deployment), schedule.slug or _text(schedule)), schedule


def _text(schedule: DeploymentSchedule) -> str:
    return schedule.schedule.model_dump_json(exclude={"anchor_date"})


def _restore(
    client: SyncPrefectClient, before: dict[tuple[str, str], DeploymentSchedule], say: Callable[[str], None]
) -> None:
    """Switch schedules as people had switched them: deploying switches them as the file says.

    When a schedule is due, the file says; where people had changed that, they are told.
    """
    for key, schedule in _switches(read_deployments(client)):
        known = before.get(key)
        if known and known.active != schedule.active and schedule.deployment_id:
            client.update_deployment_schedule(schedule.deployment_id, schedule.id, active=known.active)
        if known and _text(known) != _text(schedule):
            say(f"{key[0]} is due as {DEPLOYMENTS_FILE} says: {_text(schedule)}, not {_text(known)}")
