"""The command `align queue`: who computes on this machine, who waits for it, and for how long.

Heavy imports stay inside the functions.
"""

from argparse import Namespace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from flows.reading import print_json

if TYPE_CHECKING:
    from models.queue import Ticket

_HEADINGS = ("stage", "run", "process", "on", "threads", "for")


def queue(arguments: Namespace) -> int:
    """List what computes or waits on this machine, whatever artifact root it belongs to, in the order of arrival."""
    from flows.terminal import make_console, print_table
    from settings.settings import load_settings
    from tasks.queue import Queue

    folder = load_settings().queue
    tickets = Queue(folder).tickets()
    console = make_console()
    if arguments.json:
        print_json([_as_json(ticket) for ticket in tickets])
    elif tickets:
        print_table(_HEADINGS, [_row(ticket) for ticket in tickets], console)
    else:
        console.print(f"nobody computes or waits in {folder}", markup=False, highlight=False)
    return 0


def _as_json(ticket: "Ticket") -> dict[str, Any]:
    return ticket.model_dump(mode="json") | {"state": "computing" if ticket.computes_on else "waiting"}


def _row(ticket: "Ticket") -> tuple[str, ...]:
    from flows.terminal import duration

    where = ", ".join(ticket.computes_on) or f"waits for {' or '.join(ticket.share.devices)}"
    seconds = (datetime.now(UTC) - datetime.fromisoformat(ticket.since)).total_seconds()
    threads = str(ticket.share.threads or "-")
    process = f"{ticket.process} on {ticket.host}"
    return ticket.stage, ticket.run or "-", process, where, threads, duration(max(0.0, seconds))
