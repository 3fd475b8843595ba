"""The machine's queue: in order of arrival, within what there is, over all artifact roots, whoever dies."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.__main__ import main
from models.errors import InputError, StageError, Stopped
from models.queue import Share, Ticket
from settings.machine import Machine
from settings.settings import load_settings
from tasks.closing import closing
from tasks.execution import Execution
from tasks.queue import Queue, check_queue, is_admitted
from tests.faults import wait_until

ROOT = Path(__file__).resolve().parent.parent
DEVICES = (("cpu",), ("cuda:0",), ("cuda:0", "cuda:1"), ("cuda:1", "cuda:2"))
SHARES = st.builds(
    Share,
    devices=st.sampled_from(DEVICES),
    threads=st.integers(0, 6),
    threads_limit=st.integers(1, 6),
    stages_limit=st.integers(1, 4),
)


def cpu(threads: int, cores: int = 2, stages: int = 2) -> Share:
    return Share(devices=("cpu",), threads=threads, threads_limit=cores, stages_limit=stages)


def admitted(shares: list[Share]) -> list[Share]:
    return [share for place, share in enumerate(shares) if is_admitted(shares[:place], share)]


def meets(one: Share, other: Share) -> bool:
    return bool(set(one.devices) & set(other.devices))


@given(st.lists(SHARES, max_size=8))
def test_what_is_admitted_goes_together(shares: list[Share]) -> None:
    together = admitted(shares)
    for share in together:
        beside = [other for other in together if other.devices == share.devices]
        assert len(beside) <= share.stages_limit or len(beside) == 1
        assert sum(other.threads for other in beside) <= share.threads_limit or len(beside) == 1


@given(st.lists(SHARES, max_size=8), st.data())
def test_who_is_admitted_stays_so_when_others_leave(shares: list[Share], data: st.DataObject) -> None:
    for place, share in enumerate(shares):
        left = data.draw(st.lists(st.sampled_from(shares[:place]), unique_by=id)) if place else []
        if is_admitted(shares[:place], share):
            assert is_admitted([other for other in shares[:place] if other not in left], share)


@given(st.lists(SHARES.filter(lambda share: share.devices == ("cpu",)), max_size=8))
def test_nobody_is_overtaken(shares: list[Share]) -> None:
    told = [is_admitted(shares[:place], share) for place, share in enumerate(shares)]
    assert told == sorted(told, reverse=True)
    assert told[:1] in ([], [True])


@pytest.mark.parametrize(
    ("in_front", "asked", "goes"),
    [
        ([], cpu(8), True),
        ([cpu(1)], cpu(1), True),
        ([cpu(2)], cpu(1), False),
        ([cpu(1)], cpu(2), False),
        ([cpu(1), cpu(1)], cpu(1), False),
        ([cpu(1, cores=8)], cpu(1, cores=8, stages=1), False),
        ([cpu(1, cores=8, stages=1)], cpu(1, cores=8), False),
        ([Share(devices=("cuda:0",), threads=0, threads_limit=2, stages_limit=1)], cpu(2), True),
    ],
)
def test_admission(in_front: list[Share], asked: Share, goes: bool) -> None:
    assert is_admitted(in_front, asked) == goes


class Member:
    """Another process with a share of the machine, or in the queue for one."""

    def __init__(self, folder: Path, name: str, share: Share) -> None:
        code = (
            "import sys; from pathlib import Path; from tasks.queue import Queue; from models.queue import Share\n"
            "queue, share = Queue(Path(sys.argv[1])), Share.model_validate_json(sys.argv[3])\n"
            "say = lambda *what: print(*what, flush=True)\n"
            "with queue.turn('run ' + sys.argv[2], sys.argv[2], share, say) as places:\n"
            "    say('place', *places); sys.stdin.readline()\n"
        )
        command = [sys.executable, "-c", code, str(folder), name, share.model_dump_json()]
        self.process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def says(self) -> str:
        """The next line that it prints."""
        assert self.process.stdout
        return str(self.process.stdout.readline()).strip()

    def leave(self) -> None:
        """Let it end its work."""
        self.process.communicate("\n", timeout=30)

    def kill(self) -> None:
        """Let it die."""
        self.process.kill()
        self.process.communicate()


Join = Callable[[str, Share], Member]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "queue"


@pytest.fixture
def join(folder: Path) -> Iterator[Join]:
    """Send a process into the queue, and wait until it is there."""
    members: list[Member] = []

    def enter(name: str, share: Share) -> Member:
        members.append(Member(folder, name, share))
        wait_until(lambda: name in order(folder), 30)
        return members[-1]

    yield enter
    for member in members:
        with suppress(ProcessLookupError):
            member.kill()


def order(folder: Path) -> list[str]:
    return [ticket.stage for ticket in Queue(folder).tickets()]


def computing(folder: Path) -> list[str]:
    return [ticket.stage for ticket in Queue(folder).tickets() if ticket.computes_on]


@pytest.mark.slow
def test_processes_compute_in_the_order_of_arrival(folder: Path, join: Join) -> None:
    members = {name: join(name, cpu(threads)) for name, threads in {"a": 1, "b": 2, "c": 1, "d": 1}.items()}
    assert members["a"].says() == "place 0"
    assert computing(folder) == ["a"]  # `c` would fit, but must not overtake `b`
    taken = f"taken by a of run run a (process {members['a'].process.pid})"
    assert members["b"].says() == f"2 of 2 cores, {taken}"
    assert members["c"].says().startswith(f"1 of 2 cores, {taken}, behind b of run run b")
    members["a"].leave()
    assert members["b"].says() == "place 0"
    assert members["c"].says().startswith("1 of 2 cores, taken by b")
    members["b"].leave()
    wait_until(lambda: computing(folder) == ["c", "d"], 30)


def test_a_stage_of_the_same_run_is_said_to_be_one(folder: Path) -> None:
    waited: list[str] = []

    def stop(what: str) -> None:
        waited.append(what)
        raise Stopped("enough")

    queue = Queue(folder)
    with queue.turn("r", "a", cpu(2), stop), pytest.raises(Stopped), queue.turn("r", "b", cpu(2), stop):
        pass
    assert waited == ["2 of 2 cores, taken by a of this run"]


@pytest.mark.slow
def test_a_killed_process_gives_its_share_back(folder: Path, join: Join) -> None:
    holder, waiting, last = (join(name, cpu(2)) for name in ("a", "b", "c"))
    assert waiting.says().startswith("2 of 2 cores, taken by a")
    waiting.kill()
    wait_until(lambda: order(folder) == ["a", "c"], 30)
    holder.kill()
    assert last.says().startswith("2 of 2 cores, taken by a")
    wait_until(lambda: computing(folder) == ["c"], 30)
    last.kill()
    assert order(folder) == []
    assert [path.name for path in folder.iterdir()] == ["queue.lock"]


@pytest.mark.slow
def test_each_stage_has_an_accelerator_of_its_own(folder: Path, join: Join) -> None:
    share = Share(devices=("cuda:4", "cuda:7"), threads=0, threads_limit=2, stages_limit=2)
    members = [join(name, share) for name in "abc"]
    assert members[0].says() == "place 0"
    assert members[1].says() == "place 1"
    assert members[2].says().startswith("one of 2 places on cuda:4, cuda:7, taken by a of run run a")
    members[0].leave()
    wait_until(lambda: computing(folder) == ["b", "c"], 30)
    assert {ticket.stage: ticket.computes_on for ticket in Queue(folder).tickets()} == {
        "b": ("cuda:7",),
        "c": ("cuda:4",),
    }


def test_threads_of_one_process_share_it_like_processes(folder: Path) -> None:
    inside: list[int] = []
    most: list[int] = []
    together = threading.Barrier(2, timeout=30)

    def compute() -> None:
        with Queue(folder).turn("run", "sft", cpu(1), lambda what: None):
            inside.append(1)
            together.wait()
            most.append(len(inside))
            together.wait()
            inside.pop()

    threads = [threading.Thread(target=compute) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [2, 2, 2, 2]


@pytest.mark.slow
def test_a_process_that_is_to_end_waits_no_more(folder: Path, join: Join) -> None:
    join("a", cpu(2))
    closing.set()
    try:
        with pytest.raises(Stopped), Queue(folder).turn("run", "b", cpu(2), lambda what: None):
            pass
    finally:
        closing.clear()
    assert order(folder) == ["a"]


@pytest.mark.slow
def test_artifact_roots_share_the_queue(
    execution: Execution, folder: Path, join: Join, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ALIGN_QUEUE", str(folder))
    monkeypatch.setenv("ALIGN_HOME", str(tmp_path / "another home"))
    assert load_settings().queue == folder
    member = join("a", cpu(2))
    told: list[str] = []

    def waiting(what: str) -> None:
        told.append(what)
        member.kill()

    with Queue(load_settings().queue).turn("run", "b", execution.share, waiting):
        assert member.process.poll() == -signal.SIGKILL
    assert told[0].startswith("1 of 2 cores, taken by a of run run a")


@pytest.mark.slow
def test_the_queue_is_shown(
    folder: Path, join: Join, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ALIGN_QUEUE", str(folder))
    assert main(["queue"]) == 0
    assert "nobody computes or waits" in capsys.readouterr().out
    members = [join(name, cpu(2)) for name in ("dpo-0", "sft-1")]
    assert main(["queue"]) == 0
    assert members[1].says().startswith("2 of 2 cores")
    shown = [[cell.strip() for cell in line.split("│")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    rows = {row[0]: row for row in shown if len(row) == 6}
    assert rows["dpo-0"][3] == "cpu"
    assert rows["sft-1"][3] == "waits for cpu"
    assert str(members[1].process.pid) in rows["sft-1"][2]
    assert main(["queue", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [(one["run"], one["state"]) for one in listed] == [("run dpo-0", "computing"), ("run sft-1", "waiting")]


def test_a_machines_share_names_the_visible_accelerators(execution: Execution, monkeypatch: pytest.MonkeyPatch) -> None:
    assert execution.share == cpu(1)
    machine = Machine(device="cuda", name="t", cores=2, memory_bytes=0, native_bf16=True, accelerators=2)
    on_gpu = execution.model_copy(update={"machine": machine})
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert on_gpu.share == Share(devices=("cuda:0", "cuda:1"), threads=0, threads_limit=2, stages_limit=2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, 5")
    assert on_gpu.share.devices == ("cuda:3", "cuda:5")


def test_a_folder_of_this_users_own_is_made(folder: Path) -> None:
    with Queue(folder).turn("run", "sft", cpu(1), print):
        assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("wrong", ["a file", "open to all", "not writable"])
def test_a_folder_that_cannot_serve_is_refused(folder: Path, wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if wrong == "a file":
        folder.write_text("")
    else:
        folder.mkdir()
        folder.chmod(0o777 if wrong == "open to all" else 0o500)
    if wrong == "not writable" and os.geteuid() == 0:
        monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    with pytest.raises(InputError, match=r"ALIGN_QUEUE .*; set ALIGN_QUEUE to a folder of yours"):
        check_queue(folder)
    with pytest.raises(StageError, match="cannot hold the queue"), Queue(folder).turn("run", "sft", cpu(1), print):
        pass


@pytest.mark.slow
def test_a_ticket_of_another_version_is_named(folder: Path, join: Join) -> None:
    join("a", cpu(2))
    (path,) = folder.glob("*.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"colour": "red"}))
    with pytest.raises(StageError, match=r"000001\.json: not a ticket that this version can read"):
        Queue(folder).tickets()


def test_tickets_are_whole_and_named_by_number(folder: Path) -> None:
    with Queue(folder).turn("run", "sft", cpu(1), print), Queue(folder).turn("run", "dpo", cpu(1), print):
        written = {path.stem: Ticket.model_validate_json(path.read_bytes()) for path in folder.glob("*.json")}
    assert {name: ticket.stage for name, ticket in written.items()} == {"000001": "sft", "000002": "dpo"}
    assert all(ticket.process == os.getpid() and ticket.computes_on == ("cpu",) for ticket in written.values())
