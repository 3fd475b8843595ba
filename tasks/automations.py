"""The Prefect automations of the pipeline: runs that died in silence are marked Crashed, people are told what happens.

Names begin with `align: `. People may switch them off in the Prefect UI; that is kept.
"""

from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import NamedTuple

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import BlockDocument, StateType
from prefect.events.actions import ChangeFlowRunState, SendNotification
from prefect.events.schemas.automations import Automation, AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.exceptions import ObjectNotFound

from models.errors import InputError

_PREFIX = "align: "
_ARROW = " -> "
ZOMBIE_NAME = f"{_PREFIX}flow run without a sign of life"
SECONDS_OF_SILENCE = 180
"""Six missed heartbeats: longer than a restart of the server takes, which hides them."""
_FLOWS = ["align", "retrain"]
"""Flows whose failures people are told of; other flow runs are started by people who look on."""
_HEARTBEAT = "prefect.flow-run.heartbeat"
_WITH_PROCESS = ["align", "retrain", "evaluate", "compare", "reproduce"]
"""Flows that are at work as long as they run; one that asks a person has no process while it waits."""
_LINK = "{% if flow_run %}\n\nFlow run: {{ flow_run|ui_url }}{% endif %}"
_REPORT = "{% if event.payload.report %}\nReport: {{ event.payload.report }}{% endif %}"


class Notice(NamedTuple):
    """Something that people are told of."""

    kind: str
    """What has happened, in words."""
    trigger: EventTrigger
    """The events that tell of it."""
    body: str
    """Text of the message, a template of Prefect's."""


def _told(kind: str, event: str) -> Notice:
    """An event of the pipeline's own, which brings its message along."""
    trigger = EventTrigger(expect={event}, match=ResourceSpecification({"prefect.resource.id": "align.*"}))
    return Notice(kind, trigger, "{{ event.payload.message }}" + _LINK + _REPORT)


def _died() -> Notice:
    """A flow run that Prefect has marked; once a minute at most, since a worker tells of a crash twice."""
    trigger = EventTrigger(
        expect={"prefect.flow-run.Crashed", "prefect.flow-run.Failed", "prefect.flow-run.TimedOut"},
        match=ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"}),
        match_related=ResourceSpecification({"prefect.resource.role": "flow", "prefect.resource.name": _FLOWS}),
        for_each={"prefect.resource.id"},
        within=timedelta(minutes=1),
    )
    state = "{{ event.resource.get('prefect.state-name') }}: {{ event.resource.get('prefect.state-message') }}"
    return Notice("run crashed or failed", trigger, "{{ flow.name }} run {{ flow_run.name }} " + state + _LINK)


NOTICES = (
    _told("run completed", "align.run.completed"),
    _told("gate closed", "align.gate.closed"),
    _told("alarm raised", "align.alarm.raised"),
    _told("approval wanted", "align.checkpoint.held"),
    _told("checkpoint promoted", "align.checkpoint.promoted"),
    _died(),
)
"""Everything that people are told of, a kind each."""


def zombie_automation(silence_seconds: int = SECONDS_OF_SILENCE) -> AutomationCore:
    """What marks a flow run Crashed whose process is gone without a word, as after a loss of power."""
    trigger = EventTrigger(
        after={_HEARTBEAT},
        expect={"prefect.flow-run.*"},  # the next heartbeat or any state, whose event is called as the state is
        match=ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"}),
        match_related=ResourceSpecification({"prefect.resource.role": "flow", "prefect.resource.name": _WITH_PROCESS}),
        for_each={"prefect.resource.id"},
        posture=Posture.Proactive,
        within=timedelta(seconds=silence_seconds),
    )
    message = f"no sign of life for {silence_seconds} s: its process, its worker or their machine is gone"
    return AutomationCore(
        name=ZOMBIE_NAME,
        description="Marks flow runs Crashed whose heartbeat has stopped; made by `align up`.",
        trigger=trigger,
        actions=[ChangeFlowRunState(state=StateType.CRASHED, message=message)],
    )


def notification_automations(blocks: Iterable[tuple[str, BlockDocument]]) -> list[AutomationCore]:
    """One automation for each kind of event and block.

    Args:
        blocks: The name of each block as the setting has it, `slack-webhook/team`, and its document.
    """
    return [
        AutomationCore(
            name=f"{_PREFIX}{notice.kind}{_ARROW}{name}",
            description="Tells people what happens; made by `align up` for ALIGN_NOTIFY.",
            trigger=notice.trigger,
            actions=[SendNotification(block_document_id=block.id, subject=f"{_PREFIX}{notice.kind}", body=notice.body)],
        )
        for name, block in blocks
        for notice in NOTICES
    ]


def find_blocks(client: SyncPrefectClient, names: Sequence[str]) -> list[tuple[str, BlockDocument]]:
    """The blocks that `ALIGN_NOTIFY` names.

    Raises:
        InputError: there is no such block, or it is none that notifies.
    """
    return [(name, _find_block(client, name)) for name in names]


def _find_block(client: SyncPrefectClient, name: str) -> BlockDocument:
    slug, _, document = name.partition("/")
    try:
        found = client.read_block_document_by_name(document, slug, include_secrets=False)
    except ObjectNotFound:
        make = "make it in the Prefect UI under Blocks, then `align up` again"
        raise InputError(f"ALIGN_NOTIFY: the server has no block '{name}' (type-slug/name); {make}") from None
    if "notify" not in (found.block_schema.capabilities if found.block_schema else []):
        kinds = "Slack Webhook, Custom Webhook, Sendgrid Email or another one that notifies"
        raise InputError(f"ALIGN_NOTIFY: block '{name}' cannot send notifications; take a block of type {kinds}")
    return found


def read_automations(client: SyncPrefectClient) -> dict[str, Automation]:
    """The pipeline's automations by name."""
    return {each.name: each for each in client.read_automations() if each.name.startswith(_PREFIX)}


def apply_automations(client: SyncPrefectClient, wanted: Sequence[AutomationCore]) -> list[str]:
    """Create and update what is wanted, remove notifications that are not; what was changed, in words.

    Args:
        client: The server's client.
        wanted: All automations that shall be there.
    """
    there, changes = read_automations(client), []
    for automation in wanted:
        old = there.get(automation.name)
        if old is None:
            client.create_automation(automation)
            changes.append(f"created automation '{automation.name}'")
        elif _says(old) != _says(automation):
            client.update_automation(old.id, automation.model_copy(update={"enabled": old.enabled}))
            changes.append(f"updated automation '{automation.name}'")
    names = {automation.name for automation in wanted}
    for name, old in there.items():
        if _ARROW in name and name not in names:
            client.delete_automation(old.id)
            changes.append(f"removed automation '{name}'")
    return changes


def _says(automation: AutomationCore) -> dict[str, object]:
    return automation.model_dump(include={"description", "trigger", "actions"})
