"""A user's reward function: called in its own process, with failures that cost nothing but its own reward."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from models.errors import StageError
from models.rewards import Reward
from tasks.core.user_reward import UserReward

REPLIES = [[{"role": "assistant", "content": text}] for text in ("a", "bb", "ccc", "dddd")]
FUNCTIONS = {
    "sync": "def reward(completions, **kwargs):\n    return [len(done[-1]['content']) for done in completions]",
    "async": (
        "import asyncio\n"
        "async def reward(completions, **kwargs):\n"
        "    await asyncio.sleep(0)\n"
        "    return [len(done[-1]['content']) for done in completions]"
    ),
    "columns": "def reward(answer, prompts, scale, **kwargs):\n    return [scale * float(each) for each in answer]",
    "none": "def reward(**kwargs):\n    return [1, None, True, 0.5]",
    "numpy": "import numpy\ndef reward(**kwargs):\n    return numpy.arange(4, dtype='float32')",
    "neighbour": "from near import scale\ndef reward(**kwargs):\n    return [scale] * 4",
    "prints": "def reward(**kwargs):\n    print('a line of its own')\n    return [0.0] * 4",
}
EXPECTED: dict[str, list[float | None]] = {
    "sync": [1, 2, 3, 4],
    "async": [1, 2, 3, 4],
    "columns": [2, 4, 6, 8],
    "none": [1, None, 1, 0.5],
    "numpy": [0, 1, 2, 3],
    "neighbour": [7, 7, 7, 7],
    "prints": [0, 0, 0, 0],
}
FAILING: dict[str, tuple[str, str, str]] = {
    "exception": ("def reward(**kwargs):\n    raise ValueError('no such judge')", "exception", "line 2, in reward"),
    "signature": ("def reward(completions):\n    return [0.0] * 4", "exception", "unexpected keyword argument"),
    "async exception": (
        "async def reward(**kwargs):\n    raise ValueError('no judge')",
        "exception",
        'Traceback (most recent call last):\n  File "{file}", line 2, in reward',
    ),
    "exit": ("import sys\ndef reward(**kwargs):\n    sys.exit(3)", "exception", "SystemExit: 3"),
    "import": ("import no_such_module\ndef reward(**kwargs):\n    return []", "exception", "line 1, in <module>"),
    "syntax": ("def reward(**kwargs)\n    return [0.0] * 4", "exception", "SyntaxError"),
    "hang": ("import time\ndef reward(**kwargs):\n    time.sleep(60)", "timeout", "line 3 in reward"),
    "crash": ("import os\ndef reward(**kwargs):\n    os._exit(3)", "crash", "exit code 3"),
    "kill": ("import os\ndef reward(**kwargs):\n    os.kill(os.getpid(), 9)", "crash", "SIGKILL"),
    "segfault": ("import os\ndef reward(**kwargs):\n    os.kill(os.getpid(), 11)", "crash", "line 3 in reward"),
    "memory": ("def reward(**kwargs):\n    return len(bytearray(1 << 32))", "memory", "line 2, in reward"),
    "length": ("def reward(**kwargs):\n    return [1.0]", "length", "1 rewards for 4 completions"),
    "no list": ("def reward(**kwargs):\n    return 1.0", "exception", "it returned float"),
}  # fmt: skip


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., UserReward]]:
    """Write a function's file and give the reward."""
    made = []

    def build(text: str, **options: Any) -> UserReward:
        (tmp_path / "near.py").write_text("scale = 7.0\n")
        (tmp_path / "mine.py").write_text(text)
        asked: dict[str, Any] = {"timeout_seconds": 1.0, "failures_allowed": 1.0} | options
        made.append(UserReward(Reward(kind="function", function=f"{tmp_path / 'mine.py'}:reward", **asked)))
        return made[-1]

    yield build
    for each in made:
        each.close()


def call(reward: UserReward, logged: dict[str, float] | None = None) -> list[float | None]:
    log = (lambda name, value: logged.update({name: value})) if logged is not None else None
    columns: dict[str, Any] = {"prompts": ["?"] * 4, "completion_ids": [[1]] * 4, "answer": ["1", "2", "3", "4"]}
    return reward(completions=REPLIES, trainer_state=object(), log_extra=print, log_metric=log, **columns)


@pytest.mark.slow
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_gives_numbers_or_none(name: str, make: Callable[..., UserReward]) -> None:
    reward = make(FUNCTIONS[name], options={"scale": 2.0} if name == "columns" else {}, timeout_seconds=20)
    assert call(reward) == EXPECTED[name]
    assert not reward.failures


@pytest.mark.slow
@pytest.mark.parametrize("name", FAILING)
def test_a_failure_costs_its_own_reward_only_and_is_told(
    name: str, make: Callable[..., UserReward], capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    text, kind, told = FAILING[name]
    reward, logged = make(text), dict[str, float]()
    assert call(reward, logged) == [None] * 4
    assert dict(reward.failures) == {kind: 1}
    assert told.format(file="mine.py") in reward.last_failure
    assert logged == {"rewards/reward/failures": 1.0}
    assert f"reward reward: call 1 failed ({kind})" in capfd.readouterr().out
    assert reward.metrics() == {f"rewards/reward/failures/{kind}": 1.0}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("values", "kind", "kept"),
    [
        ("[1.0, float('nan'), 2.0, 3.0]", "not_finite", [1.0, None, 2.0, 3.0]),
        ("[1.0, 2.0, float('inf'), -float('inf')]", "not_finite", [1.0, 2.0, None, None]),
        ("[1.0, '2', 3.0, 4.0]", "value", [1.0, None, 3.0, 4.0]),
        ("[1.0, {}, 3.0, 4.0]", "value", [1.0, None, 3.0, 4.0]),
        ("[1.0, 1j, 3.0, 4.0]", "value", [1.0, None, 3.0, 4.0]),
    ],
)
def test_what_is_no_finite_number_is_left_out(
    values: str, kind: str, kept: list[float | None], make: Callable[..., UserReward]
) -> None:
    reward = make(f"def reward(**kwargs):\n    return {values}")
    assert call(reward) == kept
    assert dict(reward.failures) == {kind: 1}


@pytest.mark.slow
def test_the_process_is_kept_between_calls_and_started_anew_after_a_crash(make: Callable[..., UserReward]) -> None:
    reward = make(
        "import os\ncalls = 0\n"
        "def reward(**kwargs):\n    global calls\n    calls += 1\n    if calls == 3:\n        os._exit(1)\n"
        "    return [float(calls)] * 4"
    )
    assert [call(reward)[0] for _ in range(4)] == [1.0, 2.0, None, 1.0]


@pytest.mark.slow
def test_the_function_sees_neither_secrets_nor_open_files(
    make: Callable[..., UserReward], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    reward = make(
        "import os\ndef reward(**kwargs):\n"
        "    secret = 'HF_TOKEN' in os.environ or b'hf_secret' in open('/proc/self/environ', 'rb').read()\n"
        "    open_files = [os.path.realpath(f'/proc/self/fd/{number}') for number in range(100)]\n"
        "    return [float(secret), float('/dev/zero' in open_files), 0, 0]"
    )
    descriptor = os.open("/dev/zero", os.O_RDONLY)
    os.set_inheritable(descriptor, True)
    assert call(reward) == [0, 0, 0, 0]
    os.close(descriptor)


@pytest.mark.slow
def test_what_the_function_started_ends_with_it(make: Callable[..., UserReward], tmp_path: Path) -> None:
    reward = make(
        "import subprocess, time\ndef reward(**kwargs):\n"
        "    sleeper = subprocess.Popen(['sleep', '60'])\n"
        f"    open({str(tmp_path / 'pid')!r}, 'w').write(str(sleeper.pid))\n    time.sleep(60)"
    )
    call(reward)
    assert reward.failures == {"timeout": 1}
    sleeper = int((tmp_path / "pid").read_text())
    time.sleep(0.1)
    assert not psutil.pid_exists(sleeper) or psutil.Process(sleeper).status() == psutil.STATUS_ZOMBIE


@pytest.mark.slow
@pytest.mark.parametrize(("allowed", "stops_at"), [(0.0, 4), (0.5, 4), (1.0, None)])
def test_too_many_failures_stop_the_stage_with_the_function_s_traceback(
    allowed: float, stops_at: int | None, make: Callable[..., UserReward]
) -> None:
    reward = make("def reward(**kwargs):\n    raise ValueError('no such judge')", failures_allowed=allowed)
    for _ in range(3):
        call(reward)
    if stops_at is None:
        assert call(reward) == [None] * 4
        return
    with pytest.raises(StageError, match=r"failed in 4 of 4 calls \(exception 4\)[\s\S]*mine.py\", line 2, in reward"):
        call(reward)
