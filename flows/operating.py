"""The commands that keep the pipeline running for people and schedules: `align up`, `down` and `doctor`.

Heavy imports stay inside the functions.
"""
# ruff: noqa: T201 - a command prints

import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

    from models.operations import Check
    from settings.settings import Settings
    from tasks.operations import Operations
    from tasks.services import Service


def up(arguments: Namespace) -> int:
    """Start what is not running: server, work pool, deployments, automations, worker."""
    from tasks.operations import require_checkout, start_server, start_worker

    operations = _operations()
    require_checkout(operations.root)
    if operations.exposed:
        _say(
            f"warning: the server listens on {operations.host} and asks nobody who they are; whoever reaches it can run"
        )
        _say("code. Set PREFECT_SERVER_API_AUTH_STRING=user:password, or PREFECT_SERVER_API_HOST=127.0.0.1")
    with _alone(operations):
        started = start_server(operations, _say)
        print(f"server: {_how(operations.server, started)}")
        with _connected(operations) as client:
            _prepare(client, operations)
            started = start_worker(operations, client, _say)
            print(f"worker: {_how(operations.worker, started)}")
            if not operations.elsewhere:
                _notify(client, operations)
    print(f"\nopen {operations.api.removesuffix('/api')}, or let commands report there:")
    print(f"  export PREFECT_API_URL={operations.api}")
    if operations.auth_string:
        print("  export PREFECT_API_AUTH_STRING=…  (as the server has it)")
    return 0


def down(arguments: Namespace) -> int:
    """Stop the worker, then the server."""
    from tasks.operations import stop_service

    operations = _operations()
    with _alone(operations):
        for service in (operations.worker, operations.server):
            if service.process():
                _say(f"stopping the {service.name}" + "; its runs save first" * (service.name == "worker"))
            print(f"{service.name}: {'stopped' if stop_service(service) else 'was not running'}")
    return 0


def doctor(arguments: Namespace) -> int:
    """Look at everything that a run, the server and the schedules need; 1 where something is a problem."""
    from flows.reading import print_json
    from flows.terminal import make_console, print_table

    checks = [*_checks()]
    if arguments.json:
        print_json([check.model_dump() for check in checks])
    else:
        rows = [(each.name, each.verdict, each.seen, each.remedy) for each in checks]
        print_table(("check", "", "seen", "what to do"), rows, make_console())
    return int(any(check.verdict == "problem" for check in checks))


def _checks() -> "Iterator[Check]":
    from models.errors import InputError
    from models.operations import Check
    from settings.settings import Settings, load_settings
    from tasks.doctor import check_machine

    try:
        settings = load_settings()
    except InputError as error:
        yield Check(name="settings", verdict="problem", seen=str(error).replace("\n", "; "), remedy="correct them")
        settings = Settings.model_construct(home=Path("artifacts").absolute())
    yield from check_machine(settings)
    try:
        operations = _operations(settings)
    except InputError as error:
        yield Check(name="API", verdict="problem", seen=str(error).replace("\n", "; "), remedy="correct that setting")
    else:
        yield from _server_checks(operations)


def _server_checks(operations: "Operations") -> "Iterator[Check]":
    from tasks.doctor_server import check_reachable, check_server

    reachable = check_reachable(operations)
    yield reachable
    if reachable.verdict == "ok":
        with _connected(operations) as client:
            yield from check_server(client, operations)


def _operations(settings: "Settings | None" = None) -> "Operations":
    """The plan for this folder; Prefect reads its settings when it is first imported."""
    from pydantic import ValidationError

    from models.errors import InputError, describe_validation
    from settings.settings import load_settings

    settings = settings or load_settings()
    try:
        from tasks.operations import plan_operations

        return plan_operations(settings, Path.cwd())
    except ValidationError as error:
        raise InputError(describe_validation(error, f"Prefect's settings (PREFECT_…): {error.title}")) from None


def _prepare(client: "SyncPrefectClient", operations: "Operations") -> None:
    """Pool, deployments and the automation that needs nobody's block."""
    from tasks.deploying import deploy, ensure_pool, wanted_deployments

    if ensure_pool(client):
        _say("created the work pool")
    if operations.elsewhere:
        print("deployments, automations: left as they are, to the machine of the server (`prefect deploy --all` there)")
        return
    _say("looking at the deployments")
    deployed = deploy(client, operations, _say)
    print(f"deployments: {', '.join(wanted_deployments(operations.root))}{' (as before)' * (not deployed)}")


def _notify(client: "SyncPrefectClient", operations: "Operations") -> None:
    """The automations; last, since a block that does not exist must keep nothing else from running."""
    from tasks.automations import apply_automations, find_blocks, notification_automations, zombie_automation

    wanted = [zombie_automation(), *notification_automations(find_blocks(client, operations.settings.notify))]
    for change in apply_automations(client, wanted):
        _say(change)
    print(f"automations: {len(wanted)}; people are told through: {', '.join(operations.settings.notify) or 'nothing'}")


@contextmanager
def _connected(operations: "Operations") -> "Iterator[SyncPrefectClient]":
    """A client of the server, which says who we are."""
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

    told = {PREFECT_API_URL: operations.api, PREFECT_API_AUTH_STRING: operations.auth_string or None}
    with temporary_settings(told), get_client(sync_client=True) as client:
        yield client


@contextmanager
def _alone(operations: "Operations") -> Iterator[None]:
    """While this is open, no other `align up` or `down` starts or stops the same services."""
    from filelock import FileLock, Timeout

    operations.folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(operations.folder / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        _say("another `align up` or `align down` is at work; waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _how(service: "Service", started: bool) -> str:
    """Where a service stands, in words."""
    process = service.process()
    if process is None:
        return "runs elsewhere"
    return f"{'started' if started else 'runs already'} (process {process.pid}, log {service.log})"


def _say(text: str) -> None:
    print(f"align: {text}", file=sys.stderr, flush=True)
