"""Alarms: what raises each of them and what does not, and that a training that deserves one raises it for real."""

import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import pytest
from rich.console import Console

from flows.displays import showing_progress
from flows.terminal import print_summary
from models.alarms import Alarm, AlarmName, Alarms
from models.artifacts import Checkpoint, Dataset, Stage
from models.recipe import DPO, GRPO, SFT, RewardModel
from models.rewards import Reward
from models.run import StageOutcome
from models.sources import DatasetSource
from models.stages import DPOInput, GRPOInput, RewardInput, SFTInput, TrainingInput
from tasks.alarms import alarms_markdown, read_alarms, write_alarms
from tasks.core.alarm_rules import RULES
from tasks.core.alarms import Detector
from tasks.progress import Progress, announce
from tasks.reporting.charts import learning_charts
from tasks.reporting.page import render_report
from tests.test_report_page import checkpoint, curves, parsed, record

Entries = list[dict[str, Any]]
SOURCE = DatasetSource(path="rows.jsonl")
COMMON: dict[str, Any] = {
    "policy": Checkpoint(path=Path("/sft"), fingerprint="0" * 64, stage="sft", precision="fp32"),
    "dataset": Dataset(path=Path("/rows"), fingerprint="d" * 64, rows=8, source="rows.jsonl"),
    "seed": 1,
    "precision": "fp32",
}
REWARDS = (Reward(kind="reward_model", weight=0.2), Reward(kind="exact_answer"))
NAMES = ("reward-0123456789abcdef", "exact_answer")
"""What TRL calls them in its log."""


def stage_of(name: Stage, rewards: tuple[Reward, ...] = REWARDS, **changes: Any) -> TrainingInput:
    """The input of a stage; `changes` are its fields'."""
    if name == "sft":
        return SFTInput(hyperparameters=SFT(dataset=SOURCE), **COMMON | changes)
    if name == "reward":
        return RewardInput(hyperparameters=RewardModel(dataset=SOURCE), **COMMON | changes)
    if name == "dpo":
        return DPOInput(hyperparameters=DPO(dataset=SOURCE, beta=0.1), **COMMON | changes)
    return GRPOInput(hyperparameters=GRPO(dataset=SOURCE, rewards=rewards), **COMMON | changes)


def steady(**figures: float | None) -> Entries:
    """One window of equal entries."""
    return [figures | {"step": step} for step in range(1, 6)]


def moved(key: str, first: float, last: float) -> Entries:
    """A window of one value and a window of another."""
    return [{key: first if step <= 5 else last, "step": step} for step in range(1, 11)]


def rewarded(learned: tuple[float, float], verified: tuple[float, float], spread: float = 1.0) -> Entries:
    """Means of a reward model's term and a verifiable one in the first and in the last window."""
    return [
        {
            f"rewards/{NAMES[0]}/mean": learned[step > 5],
            f"rewards/{NAMES[0]}/std": spread,
            f"rewards/{NAMES[1]}/mean": verified[step > 5],
            f"rewards/{NAMES[1]}/std": spread,
            "step": step,
        }
        for step in range(1, 11)
    ]


def raised(stage: TrainingInput, entries: Entries, names: tuple[str, ...] = NAMES) -> list[Alarm]:
    """All alarms of a training whose log is this."""
    detector = Detector(stage, names if stage.stage == "grpo" else ())
    for entry in entries:
        detector.read(entry)
    detector.end(int(entries[-1]["step"]))
    return detector.raised


@dataclass(frozen=True)
class Case:
    """A log that deserves an alarm and one just inside its threshold."""

    stage: Stage
    deserving: Entries
    inside: Entries


LENGTH = "completions/mean_length"
CASES: dict[AlarmName, Case] = {
    "loss_not_finite": Case("sft", [*steady(loss=1.0), {"loss": math.nan, "step": 6}], steady(loss=1e30)),
    "gradient_zero": Case(
        "sft", steady(grad_norm=1e-8), [*steady(grad_norm=0.0)[1:], {"grad_norm": 1.1e-8, "step": 6}]
    ),
    "gradient_exploding": Case("dpo", steady(grad_norm=100.1), steady(grad_norm=100.0)),
    "no_reward_spread": Case("grpo", steady(frac_reward_zero_std=0.71), steady(frac_reward_zero_std=0.7)),
    "clipped_completions": Case(
        "grpo", steady(**{"completions/clipped_ratio": 0.51}), steady(**{"completions/clipped_ratio": 0.5})
    ),
    "length_exploding": Case("grpo", moved(LENGTH, 10, 30.1), moved(LENGTH, 10, 30)),
    "length_collapsing": Case("grpo", moved(LENGTH, 10, 1.9), moved(LENGTH, 10, 2)),
    "kl_high": Case("grpo", steady(kl=1.01), steady(kl=1.0)),
    "entropy_collapsed": Case("grpo", moved("entropy", 1.0, 0.019), moved("entropy", 1.0, 0.02)),
    "chosen_logps_falling": Case("dpo", steady(**{"rewards/chosen": -2.01}), steady(**{"rewards/chosen": -2.0})),
    "reward_accuracy_at_chance": Case("reward", steady(accuracy=0.54), steady(accuracy=0.55)),
    "reward_hacking": Case("grpo", rewarded((0, 0.6), (0.8, 0.2)), rewarded((0, 0.6), (0.8, 0.31))),
}
THRESHOLDS = tuple(RULES)


def test_every_alarm_has_a_case_and_every_threshold_a_rule() -> None:
    assert set(CASES) == set(get_args(AlarmName))
    assert set(THRESHOLDS) | {"window", "stop"} == set(Alarms.model_fields)
    assert set(THRESHOLDS) | {"loss_not_finite"} == set(get_args(AlarmName))


@pytest.mark.parametrize("name", CASES)
def test_a_log_that_deserves_it_raises_the_alarm_once(name: AlarmName) -> None:
    case = CASES[name]
    last = case.deserving[-1]
    going_on = [last | {"step": last["step"] + more} for more in (1, 2, 3)]
    (alarm,) = raised(stage_of(case.stage), case.deserving + going_on)
    assert (alarm.name, alarm.stage, alarm.stopped) == (name, case.stage, name == "loss_not_finite")
    assert "; " in alarm.message


@pytest.mark.parametrize("name", CASES)
def test_a_log_just_inside_the_threshold_raises_nothing(name: AlarmName) -> None:
    assert raised(stage_of(CASES[name].stage), CASES[name].inside) == []


@pytest.mark.parametrize("name", THRESHOLDS)
def test_a_threshold_of_none_switches_its_alarm_off(name: AlarmName) -> None:
    alarms = Alarms.model_validate({name: None})
    assert raised(stage_of(CASES[name].stage, alarms=alarms), CASES[name].deserving) == []


@pytest.mark.parametrize("name", THRESHOLDS)
def test_a_message_names_threshold_and_value(name: AlarmName) -> None:
    (alarm,) = raised(stage_of(CASES[name].stage), CASES[name].deserving)
    assert alarm.value is not None
    assert alarm.threshold == getattr(Alarms(), name)
    assert f" alarms.{name}, {alarm.threshold:g}" in alarm.message


@pytest.mark.parametrize("name", THRESHOLDS)
def test_nothing_is_raised_before_a_window_is_full(name: AlarmName) -> None:
    case = CASES[name]
    alarms = Alarms(window=len(case.deserving) + 1)
    assert raised(stage_of(case.stage, alarms=alarms), case.deserving) == []


@pytest.mark.parametrize("name", [name for name, rule in RULES.items() if len(rule.stages) == 1])
def test_figures_of_another_stage_raise_nothing(name: AlarmName) -> None:
    for stage in {"sft", "reward", "dpo", "grpo"} - set(RULES[name].stages):
        assert raised(stage_of(stage), CASES[name].deserving) == []  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("stage", "entry", "is_raised"),
    [
        (stage_of("sft"), {"loss": math.inf}, True),
        (stage_of("dpo"), {"loss": 1.0, "grad_norm": math.nan}, True),
        (stage_of("sft", precision="fp16"), {"loss": 1.0, "grad_norm": math.inf}, False),
        (stage_of("sft", precision="fp16"), {"loss": math.nan, "grad_norm": math.inf}, True),
        (stage_of("grpo"), {"loss": 0.0, "reward": None}, False),
    ],
)
def test_a_loss_that_is_no_number_is_seen_at_once(stage: TrainingInput, entry: dict[str, Any], is_raised: bool) -> None:
    assert [alarm.name for alarm in raised(stage, [entry | {"step": 1}])] == ["loss_not_finite"] * is_raised


def test_figures_that_are_missing_or_no_numbers_are_left_out() -> None:
    figures = [None, math.nan, 0.9, 0.9, 0.9, 0.9]
    entries = [{"frac_reward_zero_std": figure, "step": step} for step, figure in enumerate(figures, 1)]
    assert raised(stage_of("grpo"), entries) == []
    (alarm,) = raised(stage_of("grpo"), [*entries, {"frac_reward_zero_std": 0.9, "step": 7}])
    assert (alarm.step, round(alarm.value or 0, 6)) == (7, 0.9)


def test_an_entropy_that_was_low_from_the_start_has_not_collapsed() -> None:
    assert raised(stage_of("grpo"), moved("entropy", 0.01, 0.001)) == []


@pytest.mark.parametrize(
    ("rewards", "entries", "is_raised"),
    [
        (REWARDS, rewarded((0, 1), (1, 0)), True),
        (REWARDS, rewarded((0, 1), (0, 1)), False),
        (REWARDS, rewarded((1, 0), (1, 0)), False),
        (REWARDS, rewarded((0, 1), (1, 0), spread=3.0), False),
        (REWARDS, rewarded((0, 1), (1, 0), spread=0.0), False),
        ((REWARDS[0], Reward(kind="exact_answer", weight=-1)), rewarded((0, 1), (0, 1)), True),
        ((REWARDS[0], Reward(kind="reward_model", name="other")), rewarded((0, 1), (1, 0)), False),
        ((REWARDS[1], Reward(kind="exact_answer", name="other")), rewarded((0, 1), (1, 0)), False),
    ],
)
def test_hacking_is_a_reward_model_against_a_rule(
    rewards: tuple[Reward, ...], entries: Entries, is_raised: bool
) -> None:
    assert [alarm.name for alarm in raised(stage_of("grpo", rewards), entries)] == ["reward_hacking"] * is_raised


def test_alarms_are_no_part_of_the_identity() -> None:
    for name in ("sft", "reward", "dpo", "grpo"):
        plain, strict = stage_of(name), stage_of(name, alarms=Alarms(window=1, kl_high=None, stop=("kl_high",)))
        assert plain.fingerprint == strict.fingerprint
        assert "alarms" not in plain.identity()


def some_alarm(**changes: Any) -> Alarm:
    """An alarm as a training would raise it."""
    (alarm,) = raised(stage_of("grpo"), CASES["no_reward_spread"].deserving)
    return alarm.model_copy(update=changes)


def test_written_alarms_are_read_back(tmp_path: Path) -> None:
    write_alarms(tmp_path, [])
    assert list(tmp_path.iterdir()) == []
    assert read_alarms(tmp_path) == ()
    alarms = (some_alarm(), some_alarm(name="loss_not_finite", value=None, threshold=None, stopped=True))
    write_alarms(tmp_path, alarms)
    assert read_alarms(tmp_path) == alarms
    assert all(alarm.message in alarms_markdown("grpo-0", alarms) for alarm in alarms)


@pytest.mark.parametrize("live", [False, True])
def test_the_terminal_shows_every_alarm_at_once(live: bool) -> None:
    output = io.StringIO()
    with showing_progress(Console(file=output, force_terminal=live, width=1000)):
        for step in (5, 6):
            alarm = some_alarm(step=step, message=f"[seen] at {step}")
            announce(Progress(stage="grpo-0123456789abcdef", phase="training", step=step, total_steps=9, alarm=alarm))
    for step in (5, 6):
        assert f"grpo-0123456789abcdef: alarm no_reward_spread at step {step}: [seen] at {step}" in output.getvalue()


def test_the_summary_counts_alarms() -> None:
    run = record("grpo")
    outcome = StageOutcome(stage="grpo", checkpoint=checkpoint("grpo"), cached=False, seconds=1, alarms=(some_alarm(),))
    output = io.StringIO()
    print_summary(run.model_copy(update={"stages": (outcome,)}), Console(file=output, width=200))
    assert "alarms: 1 (grpo no_reward_spread)" in output.getvalue()


def test_the_report_lists_alarms_and_marks_their_steps() -> None:
    run = record("dpo", "grpo")
    assert 'id="alarms"' not in render_report(run, curves(), {})
    *others, grpo = run.stages
    alarms = (some_alarm(message="<b>spread</b>"), some_alarm(name="kl_high", step=9, stopped=True))
    run = run.model_copy(update={"stages": (*others, grpo.model_copy(update={"alarms": alarms}))})
    page = render_report(run, curves(), {})
    assert '<a href="#alarms">2 alarms while training</a>' in page
    assert parsed(page).ids.count("alarms") == 1
    for said in ("&lt;b&gt;spread", "no reward spread", "kl high (stopped the stage)", "<td>9</td>"):
        assert said in page
    chart = learning_charts("grpo", curves()["grpo"], alarms)[0]
    assert [shape["x0"] for shape in chart.figure["layout"]["shapes"]] == [5, 9]
