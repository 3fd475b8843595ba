"""Notifications: what happens reaches a receiver, through a server, a worker and automations that are real."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.blocks.system import Secret
from prefect.settings import PREFECT_API_URL, temporary_settings

from models.errors import InputError
from settings.settings import load_settings
from tasks.automations import NOTICES, ZOMBIE_NAME, apply_automations, read_automations, zombie_automation
from tests.faults import wait_until
from tests.operating import Place

EVENTS = {
    "align.run.completed": "run completed",
    "align.gate.closed": "gate closed",
    "align.alarm.raised": "alarm raised",
    "align.checkpoint.held": "approval wanted",
    "align.checkpoint.promoted": "checkpoint promoted",
}


@pytest.fixture
def received() -> Iterator[dict[str, Any]]:
    """What an HTTP server on this machine gets, by subject, and its address under `url`."""
    bodies: dict[str, Any] = {}

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            said = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            bodies.setdefault(said["subject"].removeprefix("align: "), []).append(said["body"])
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Nothing: the test's output is its own."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Receiver) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        bodies["url"] = f"http://127.0.0.1:{server.server_port}"
        yield bodies
        server.shutdown()


def make_blocks(place: Place, url: str) -> None:
    with temporary_settings({PREFECT_API_URL: place.api}):
        webhook = CustomWebhookNotificationBlock(
            name="ops", url=url, json_data={"subject": "{{subject}}", "body": "{{body}}"}
        )
        webhook.save("ops", overwrite=True)
        Secret(value="s").save("hidden", overwrite=True)


@pytest.mark.slow
@pytest.mark.e2e
def test_what_happens_is_told(place: Place, received: dict[str, Any]) -> None:
    make_blocks(place, received.pop("url"))
    done = place.align("up", ALIGN_NOTIFY="custom-webhook/ops")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("created automation") == len(NOTICES)
    assert "automation" not in place.align("up", ALIGN_NOTIFY="custom-webhook/ops").stderr

    talkative = place.run("align/happenings", events=[*EVENTS])
    dying, quiet = place.run("align/happenings", die=True), place.run("other/others")
    place.wait_for(quiet, "Failed")
    for event, kind in EVENTS.items():
        wait_until(lambda kind=kind: kind in received, 90)  # type: ignore[misc]
        (body,) = received[kind]
        assert f"this is {event}" in body
        assert f"{place.api.removesuffix('/api')}/runs/flow-run/{talkative}" in body
        assert "Report: /reports/run-1.html" in body
    wait_until(lambda: "run crashed or failed" in received, 90)
    (body,) = received["run crashed or failed"]
    assert "align run " in body
    assert "Crashed: " in body
    assert str(dying) in body

    code, checks = place.doctor(ALIGN_NOTIFY="custom-webhook/ops")
    assert (code, checks["automations"]["verdict"]) == (0, "ok")
    code, checks = place.doctor(ALIGN_NOTIFY="custom-webhook/nobody")
    assert (code, checks["automations"]["verdict"]) == (1, "problem")


@pytest.mark.slow
@pytest.mark.e2e
def test_notifications_follow_the_setting(place: Place) -> None:
    make_blocks(place, "http://127.0.0.1:9/")
    for name, complaint in {"custom-webhook/nobody": "no block", "secret/hidden": "cannot send"}.items():
        done = place.align("up", ALIGN_NOTIFY=name)
        assert (done.returncode, complaint in done.stderr, name in done.stderr) == (2, True, True)
        assert "worker: runs already" in done.stdout
    place.align("up", ALIGN_NOTIFY="custom-webhook/ops")
    with place.client() as client:
        there = read_automations(client)
        assert len(there) == len(NOTICES) + 1
        client.pause_automation(there[ZOMBIE_NAME].id)
        changed = zombie_automation().model_copy(update={"description": "another"})
        assert apply_automations(client, [changed]) == [
            f"updated automation '{ZOMBIE_NAME}'",
            *(f"removed automation '{name}'" for name in there if name != ZOMBIE_NAME),
        ]
        (left,) = read_automations(client).values()
        assert (left.description, left.enabled, left.trigger) == ("another", False, zombie_automation().trigger)
        client.resume_automation(left.id)
    assert "updated automation" in place.align("up").stderr


@pytest.mark.slow
@pytest.mark.e2e
def test_a_flow_run_that_dies_in_silence_is_marked_crashed(place: Place) -> None:
    with place.client() as client:
        apply_automations(client, [zombie_automation(silence_seconds=15)])
    run = place.run("align/happenings", seconds=300)
    place.wait_for_sign_of_life(run)
    worker = place.process("worker")
    for process in (worker, *worker.children(recursive=True)):
        process.kill()
    assert "no sign of life for 15 s" in place.wait_for(run, "Crashed")
    done = place.align("up")
    assert "server: runs already" in done.stdout
    assert "worker: started" in done.stdout


@pytest.mark.parametrize("value", ["team", "Slack Webhook/team", "slack-webhook/", "a/b/c"])
def test_a_block_is_named_by_type_and_name(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGN_NOTIFY", f"custom-webhook/ops,{value}")
    with pytest.raises(InputError, match=rf"ALIGN_NOTIFY: '{value.replace(' ', '')}' is no block"):
        load_settings()
