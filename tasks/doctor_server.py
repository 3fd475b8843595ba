"""Checks of the Prefect server, its worker and what is deployed. Each looks at one thing only."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import httpx
import prefect
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateName
from prefect.client.schemas.objects import WorkerStatus
from prefect.exceptions import ObjectNotFound

from models.operations import Check
from tasks.automations import ZOMBIE_NAME, find_blocks, notification_automations, read_automations
from tasks.deploying import is_deployed, read_deployments, wanted_deployments
from tasks.doctor import guarded
from tasks.operations import DEPLOYMENTS_FILE, POOL, Operations

_UP = "`make up` (or `align up`)"
_MOST_NAMED = 3

Look = Callable[[SyncPrefectClient, Operations], Check]


def check_reachable(operations: Operations) -> Check:
    """Whether an API answers, and to whom."""
    name, api = "API", operations.api
    try:
        response = httpx.get(f"{api}/admin/version", headers=_authorization(operations), timeout=10)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        seen = f"no answer at {api} ({type(error).__name__})"
        return Check(name=name, verdict="problem", seen=seen, remedy=f"{_UP} starts a server")
    if response.status_code == httpx.codes.UNAUTHORIZED:
        remedy = "set PREFECT_API_AUTH_STRING to what the server has in PREFECT_SERVER_API_AUTH_STRING"
        return Check(name=name, verdict="problem", seen=f"{api} refuses us (401)", remedy=remedy)
    if response.status_code != httpx.codes.OK:
        remedy = "is PREFECT_API_URL right? It ends with /api"
        return Check(name=name, verdict="problem", seen=f"{api} answers {response.status_code}", remedy=remedy)
    found = str(response.json())
    if found.split(".")[:2] != prefect.__version__.split(".")[:2]:
        seen = f"{api}, Prefect {found}, while the client here is {prefect.__version__}"
        return Check(name=name, verdict="problem", seen=seen, remedy="install the same minor version on both sides")
    return Check(name=name, verdict="ok", seen=f"{api}, Prefect {found}")


def check_server(client: SyncPrefectClient, operations: Operations) -> Iterator[Check]:
    """Look at everything that needs the server to answer."""
    for name, look in _LOOKS.items():
        yield guarded(name, lambda look=look: look(client, operations))  # type: ignore[misc]


def _authorization(operations: Operations) -> dict[str, str]:
    if not operations.auth_string:
        return {}
    user, _, password = operations.auth_string.partition(":")
    return {"Authorization": httpx.BasicAuth(user, password)._auth_header}


def _authentication(client: SyncPrefectClient, operations: Operations) -> Check:
    name = "authentication"
    if httpx.get(f"{operations.api}/admin/version", timeout=10).status_code == httpx.codes.UNAUTHORIZED:
        return Check(name=name, verdict="ok", seen="the server asks for it and takes ours")
    if operations.elsewhere or operations.exposed:
        remedy = "set PREFECT_SERVER_API_AUTH_STRING on the server: whoever reaches it can run code"
        return Check(name=name, verdict="warning", seen="the server asks nobody who they are", remedy=remedy)
    return Check(name=name, verdict="ok", seen=f"none is asked for; the server listens on {operations.host} only")


def _telemetry(client: SyncPrefectClient, operations: Operations) -> Check:
    if _server_settings(client).get("analytics_enabled"):
        remedy = "set PREFECT_SERVER_ANALYTICS_ENABLED=false on the server"
        return Check(name="telemetry", verdict="warning", seen="the server sends usage data to Prefect", remedy=remedy)
    return Check(name="telemetry", verdict="ok", seen="off")


def _leases(client: SyncPrefectClient, operations: Operations) -> Check:
    module = str(_server_settings(client)["concurrency"]["lease_storage"])
    kind = module.rpartition(".")[2]
    if kind == "memory":
        remedy = (
            "set PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE=prefect.server.concurrency.lease_storage.filesystem "
            "on the server, or a restart leaves slots taken"
        )
        return Check(name="slots' storage", verdict="warning", seen="in memory", remedy=remedy)
    return Check(name="slots' storage", verdict="ok", seen=kind)


def _database(client: SyncPrefectClient, operations: Operations) -> Check:
    url = operations.environment.get("PREFECT_SERVER_DATABASE_CONNECTION_URL", "")
    if operations.elsewhere:
        return Check(name="database", verdict="ok", seen="the server's own affair")
    kind = "PostgreSQL" if url.startswith("postgresql") else "SQLite, for one machine and a few people"
    return Check(name="database", verdict="ok", seen=kind)


def _worker(client: SyncPrefectClient, operations: Operations) -> Check:
    name = "worker"
    try:
        pool = client.read_work_pool(POOL)
    except ObjectNotFound:
        return Check(name=name, verdict="problem", seen=f"there is no work pool '{POOL}'", remedy=f"{_UP} makes it")
    if pool.is_paused:
        remedy = f"`prefect work-pool resume {POOL}`"
        return Check(name=name, verdict="warning", seen=f"work pool '{POOL}' is paused", remedy=remedy)
    workers = client.read_workers_for_work_pool(POOL)
    online = [each for each in workers if each.status is WorkerStatus.ONLINE]
    if not online:
        seen = f"none of {len(workers)} is online" if workers else "none has ever come"
        return Check(name=name, verdict="problem", seen=f"{seen}; runs will wait", remedy=f"{_UP} starts one")
    beats = [each.last_heartbeat_time for each in online if each.last_heartbeat_time]
    ago = f", seen {(datetime.now(UTC) - max(beats)).total_seconds():.0f} s ago" if beats else ""
    return Check(name=name, verdict="ok", seen=f"{', '.join(each.name for each in online)}{ago}")


def _deployments(client: SyncPrefectClient, operations: Operations) -> Check:
    name, there = "deployments", {each.name for each in read_deployments(client)}
    if not (operations.root / DEPLOYMENTS_FILE).is_file():
        seen = f"{len(there)} on the server; this folder has no {DEPLOYMENTS_FILE} to compare with"
        return Check(name=name, verdict="ok" if there else "warning", seen=seen)
    missing = [each for each in wanted_deployments(operations.root) if each not in there]
    if missing:
        return Check(name=name, verdict="problem", seen=f"missing: {', '.join(missing)}", remedy=f"{_UP} deploys them")
    if not is_deployed(client, operations.root):
        remedy = f"{_UP} deploys this checkout's"
        return Check(name=name, verdict="warning", seen=f"{len(there)}, from other code than here", remedy=remedy)
    return Check(name=name, verdict="ok", seen=", ".join(sorted(there)))


def _slots(client: SyncPrefectClient, operations: Operations) -> Check:
    limits = client.read_global_concurrency_limits(limit=200)
    held = [f"{each.active_slots:g} of {each.name}" for each in limits if each.active_slots > 0]
    running = _runs_in(client, "Running", "Cancelling", "Pending")
    if held and not running:
        remedy = "if that stays, reset them: `prefect global-concurrency-limit update NAME --active-slots 0`"
        seen = f"held although nothing runs: {', '.join(held)}"
        return Check(name="slots", verdict="warning", seen=seen, remedy=remedy)
    return Check(
        name="slots", verdict="ok", seen=f"{len(held)} of {len(limits)} limits in use, {len(running)} runs active"
    )


def _automations(client: SyncPrefectClient, operations: Operations) -> Check:
    there, settings = read_automations(client), operations.settings
    wanted = [each.name for each in notification_automations(find_blocks(client, settings.notify))]
    missing = [name for name in (ZOMBIE_NAME, *wanted) if name not in there]
    off = [name for name, automation in there.items() if not automation.enabled]
    if missing:
        seen, remedy = f"missing: {_some(missing)}", f"{_UP} makes them"
        return Check(name="automations", verdict="problem", seen=seen, remedy=remedy)
    if off:
        remedy = "switch them on in the Prefect UI under Automations"
        return Check(name="automations", verdict="warning", seen=f"switched off: {_some(off)}", remedy=remedy)
    told = ", ".join(settings.notify) or "nobody (ALIGN_NOTIFY)"
    return Check(name="automations", verdict="ok", seen=f"silent runs are marked Crashed; told: {told}")


def _late(client: SyncPrefectClient, operations: Operations) -> Check:
    late = _runs_in(client, "Late")
    if late:
        seen = f"{len(late)} wait: {_some(late)}"
        return Check(name="late runs", verdict="warning", seen=seen, remedy="is a worker online, and its limit free?")
    return Check(name="late runs", verdict="ok", seen="none")


def _runs_in(client: SyncPrefectClient, *states: str) -> list[str]:
    chosen = FlowRunFilter(state=FlowRunFilterState(name=FlowRunFilterStateName(any_=[*states])))
    return [run.name for run in client.read_flow_runs(flow_run_filter=chosen, limit=200)]


def _server_settings(client: SyncPrefectClient) -> dict[str, Any]:
    settings: dict[str, Any] = client.request("GET", "/admin/settings").json()["server"]
    return settings


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more


_LOOKS: dict[str, Look] = {
    "authentication": _authentication,
    "telemetry": _telemetry,
    "slots' storage": _leases,
    "database": _database,
    "worker": _worker,
    "deployments": _deployments,
    "slots": _slots,
    "automations": _automations,
    "late runs": _late,
}
