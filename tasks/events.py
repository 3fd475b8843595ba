"""What happens in runs, as Prefect events: automations act on them, whatever else they are to do than tell somebody."""

from typing import Any, Literal

from prefect.events import emit_event

Event = Literal[
    "align.run.completed",
    "align.run.unchanged",
    "align.gate.closed",
    "align.alarm.raised",
    "align.checkpoint.held",
    "align.checkpoint.promoted",
]


def tell(event: Event, subject: str, message: str, **details: Any) -> None:
    """Emit an event; within a flow run, Prefect adds that, its deployment and its tags as related resources.

    Args:
        event: What has happened.
        subject: Name of the run or checkpoint that it has happened to.
        message: The same in a sentence for people: `event.payload.message` in an automation's template.
        details: Further JSON data for templates.
    """
    emit_event(
        event=event,
        resource={"prefect.resource.id": f"align.{subject}", "prefect.resource.name": subject},
        payload={"message": message} | details,
    )
