"""A user's function as one of GRPO's rewards: a call that fails costs this reward only, and is counted and told."""

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from models.errors import StageError
from models.rewards import Reward
from tasks.core.ranks import first_told, is_main, sum_of_all
from tasks.core.reward_process import CallFailed, RewardProcess
from tasks.files import file_digest
from tasks.reward_functions import function_file

FAILURES = "reward_failures.json"
"""The file of a model's folder with the failed calls by kind and the last failure, by reward; of several
processes, that of the first which has one."""
_CALLS_TO_JUDGE = 4
"""Calls after which the share of failures counts."""
_FOLDERS = re.compile(r'File "[^"]*/')
"""Whose machine it was, which a published traceback need not tell."""
_NOT_FOR_OTHERS = ("trainer_state", "log_extra", "environments")
"""What TRL offers its functions beside the columns, and cannot leave the training process."""


def user_reward(reward: Reward, sha256: str | None) -> "UserReward":
    """The reward of a function of the user's.

    Args:
        reward: Which function, with what limits.
        sha256: What its file's digest must be; none: whatever it is.

    Raises:
        StageError: the file is another than when the stage was asked for.
    """
    file = function_file(reward.function or "")
    if sha256 and file_digest(file) != sha256:
        raise StageError(f"reward {reward.label}: {file} was changed since the run began; run again")
    return UserReward(reward)


@contextmanager
def accounting_for(rewards: Iterable[object], folder: Path) -> Iterator[dict[str, float]]:
    """End the processes of all functions in the end, and note in `folder` what failed where training came through.

    Yields:
        Filled at the end: failed calls by reward and kind.
    """
    users = [reward for reward in rewards if isinstance(reward, UserReward)]
    metrics: dict[str, float] = {}
    try:
        yield metrics
    finally:
        for user in users:
            user.close()
    for user in users:
        user.failures = sum_of_all(user.failures)
        user.last_failure = first_told(user.last_failure)
    told = {user.__name__: {**user.failures, "last": user.last_failure} for user in users if user.failures}
    if told and is_main():
        (folder / FAILURES).write_text(json.dumps(told, indent=2))
    for user in users:
        metrics |= user.metrics()


class UserReward:
    """Calls the function in its process. Without a number a completion gets none: TRL leaves it out of the sum."""

    def __init__(self, reward: Reward) -> None:
        self.__name__ = reward.label
        self._reward = reward
        self._process = RewardProcess(reward.function or "", reward.timeout_seconds, reward.memory_limit_bytes)
        self.calls = 0
        """Calls so far."""
        self.failures: Counter[str] = Counter()
        """Failed calls by kind: `exception`, `memory`, `timeout`, `crash`, `length`, `value` and `not_finite`."""
        self.last_failure = ""
        """The last failure with its traceback."""

    def __call__(
        self, completions: Sequence[Any], log_metric: Callable[[str, float], None] | None = None, **columns: Any
    ) -> list[float | None]:
        """One number or none a completion.

        Args:
            completions: One conversation a completion, ending with the assistant's reply.
            log_metric: TRL's, for the share of calls that failed.
            columns: Prompts, token ids and the columns of the rows, one value a completion.

        Raises:
            StageError: more calls have failed than the recipe allows.
        """
        asked = {key: value for key, value in columns.items() if key not in _NOT_FOR_OTHERS}
        before = self.failures.total()
        self.calls += 1
        try:
            rewards = self._process.call(asked | {"completions": completions} | self._reward.options)
            rewards = self._checked(rewards, len(completions))
        except CallFailed as failed:
            self._note(failed.kind, failed.trace)
            rewards = [None] * len(completions)
        if log_metric:
            log_metric(f"rewards/{self.__name__}/failures", float(self.failures.total() - before))
        self._stop_if_it_fails_too_often()
        return rewards

    def close(self) -> None:
        """End the function's process."""
        self._process.close()

    def metrics(self) -> dict[str, float]:
        """Failed calls by kind, as `rewards/<label>/failures/<kind>`; nothing where none failed."""
        return {f"rewards/{self.__name__}/failures/{kind}": float(count) for kind, count in self.failures.items()}

    def _checked(self, rewards: list[Any], wanted: int) -> list[float | None]:
        """The finite numbers; a completion with anything else gets none."""
        if len(rewards) != wanted:
            raise CallFailed("length", f"it returned {len(rewards)} rewards for {wanted} completions")
        wrong = next((value for value in rewards if isinstance(value, str)), None)
        endless = next((value for value in rewards if isinstance(value, float) and not math.isfinite(value)), None)
        if wrong is not None:
            self._note("value", f"it returned {wrong} for completion {rewards.index(wrong)}, which is not a number")
        elif endless is not None:
            self._note("not_finite", f"it returned {endless}; a reward is a finite number, or None")
        return [value if isinstance(value, float) and math.isfinite(value) else None for value in rewards]

    def _note(self, kind: str, trace: str) -> None:
        trace = _FOLDERS.sub('File "', trace)
        self.failures[kind] += 1
        told = "as before" if trace == self.last_failure else trace
        self.last_failure = trace
        print(f"reward {self.__name__}: call {self.calls} failed ({kind}): {told}")  # noqa: T201

    def _stop_if_it_fails_too_often(self) -> None:
        failed = self.failures.total()
        if self.calls < _CALLS_TO_JUDGE or failed <= self._reward.failures_allowed * self.calls:
            return
        kinds = ", ".join(f"{kind} {count}" for kind, count in self.failures.most_common())
        name = Path(self._reward.function or "").name
        raise StageError(
            f"reward {self.__name__} ({name}) failed in {failed} of {self.calls} calls ({kinds}), more than "
            f"failures_allowed {self._reward.failures_allowed:g}; mend the function and run again. The last "
            f"failure:\n{self.last_failure}"
        )
