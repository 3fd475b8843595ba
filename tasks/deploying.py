"""Putting the deployments of `prefect.yaml` on the server: once for each version, and with people's switches kept."""

import hashlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import yaml
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import VariableCreate, VariableUpdate, WorkPoolCreate
from prefect.client.schemas.filters import WorkPoolFilter, WorkPoolFilterName
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound

from models.errors import StageError
from tasks.operations import DEPLOYMENTS_FILE, POOL, Operations

_VARIABLE = "align_deployed"
"""Prefect variable that tells which version of the deployments the server has."""
_FORMS = ("flows", "models")
"""Packages whose code decides what the deployments' forms look like."""


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
    """Digest of everything that the deployments on a server depend on: their file, their forms, their folder."""
    digest = hashlib.sha256(str(root).encode())
    for path in (root / DEPLOYMENTS_FILE, *(path for name in _FORMS for path in sorted((root / name).glob("*.py")))):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def wanted_deployments(root: Path) -> list[str]:
    """Names of the deployments in `prefect.yaml`."""
    return [each["name"] for each in yaml.safe_load((root / DEPLOYMENTS_FILE).read_text())["deployments"]]


def read_deployments(client: SyncPrefectClient) -> list[DeploymentResponse]:
    """The deployments that the pool's worker serves."""
    return client.read_deployments(work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[POOL])), limit=200)


def is_deployed(client: SyncPrefectClient, root: Path) -> bool:
    """Whether the server has this version of every deployment."""
    told = client.read_variable_by_name(_VARIABLE)
    there = {each.name for each in read_deployments(client)}
    return bool(told and told.value == deployments_version(root) and there >= {*wanted_deployments(root)})


def deploy(client: SyncPrefectClient, operations: Operations) -> bool:
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
    _restore(client, switched)
    version = deployments_version(operations.root)
    if client.read_variable_by_name(_VARIABLE):
        client.update_variable(VariableUpdate(name=_VARIABLE, value=version))
    else:
        client.create_variable(VariableCreate(name=_VARIABLE, value=version))
    return True


def _switches(deployments: list[DeploymentResponse]) -> Iterator[tuple[tuple[str, str], bool]]:
    """Each schedule, known by its deployment and what it says, and whether it is on."""
    for deployment in deployments:
        for schedule in deployment.schedules:
            yield (deployment.name, schedule.schedule.model_dump_json(exclude={"anchor_date"})), schedule.active


def _restore(client: SyncPrefectClient, switched: dict[tuple[str, str], bool]) -> None:
    """Switch schedules as people had switched them: deploying switches them as the file says."""
    for deployment in read_deployments(client):
        for schedule in deployment.schedules:
            key = (deployment.name, schedule.schedule.model_dump_json(exclude={"anchor_date"}))
            before = switched.get(key, schedule.active)
            if before != schedule.active:
                client.update_deployment_schedule(deployment.id, schedule.id, active=before)
