"""The form in the Prefect UI: every field explains itself, and what its schema lets through is refused in our words."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect import get_client
from prefect.client.schemas import FlowRun
from prefect.exceptions import PrefectHTTPStatusError, SignatureMismatchError
from prefect.flow_engine import run_flow
from prefect.states import Crashed
from prefect.utilities.callables import parameter_schema

from flows.align import align
from flows.evaluation import evaluate
from flows.promote import promote
from flows.retrain import retrain
from models.errors import InputError
from models.recipe import Recipe
from tests.tiny import tiny_recipe

SCHEMAS = {flow.name: parameter_schema(flow.fn).model_dump() for flow in (align, retrain, evaluate, promote)}
UNITS = re.compile(
    r"\b(tokens?|rows|steps|passes|completions|replies|prompts|examples|words|days|seconds|bytes|nats|shares?"
    r"|from 0 to 1|factor|weight of|norms?|dimension|standard deviations|multiple|measure's own unit|whole number)\b",
    re.IGNORECASE,
)
SECONDS_TO_REFUSE = 2.0
ORDERS = {
    "SFT": ["dataset", "learning_rate", "num_train_epochs", "max_steps", "batch_size", "lora", "max_length"],
    "DPO": ["dataset", "learning_rate", "num_train_epochs", "max_steps", "batch_size", "lora", "beta", "loss_type"],
    "GRPO": ["dataset", "learning_rate", "num_train_epochs", "max_steps", "batch_size", "lora", "rewards"],
    "Reward": ["kind", "weight", "name"],
    "Verifier": ["kind", "column"],
    "DatasetSource": ["path", "split", "max_rows"],
    "Recipe": ["base_model", "system_prompt", "sft", "reward", "dpo", "grpo", "evaluation", "gate"],
}
"""The first fields of some cards."""
LAST = {
    "SFT": ["warmup_ratio", "weight_decay", "adam_beta1", "adam_beta2", "max_grad_norm", "packing"],
    "Recipe": ["alarms", "seed", "precision", "quantization"],
    "Reward": ["timeout_seconds", "memory_limit_bytes", "failures_allowed"],
}
"""Their last ones."""


def cards() -> dict[str, dict[str, dict[str, Any]]]:
    """The fields of every card of the form, by name, in the order in which the UI shows them."""
    found: dict[str, dict[str, Any]] = {}
    for flow, schema in SCHEMAS.items():
        found |= {name: card["properties"] for name, card in schema["definitions"].items() if "properties" in card}
        found[flow] = schema["properties"]
    return {name: dict(sorted(card.items(), key=lambda each: each[1]["position"])) for name, card in found.items()}


CARDS = cards()
FIELDS = [
    pytest.param(name, shown, id=f"{card}.{name}") for card, fields in CARDS.items() for name, shown in fields.items()
]


def sentences(text: str) -> int:
    return len(re.findall(r"\.(?=\s|$)", text.replace("et al.", "")))


def test_the_whole_recipe_is_in_the_form() -> None:
    assert list(CARDS["align"]) == ["recipe", "recipe_name", "force", "resume"]
    assert set(CARDS["Recipe"]) == set(Recipe.model_fields)
    assert len(FIELDS) > 130


@pytest.mark.parametrize(("name", "shown"), FIELDS)
def test_a_field_explains_itself(name: str, shown: dict[str, Any]) -> None:
    title, text = shown["title"], shown["description"]
    assert title != name
    assert len(text) > 15
    assert text.endswith(".")
    assert sentences(text) in (1, 2)
    types = {option.get("type") for option in [shown, *shown.get("anyOf", [])]}
    if types & {"integer", "number"}:
        assert UNITS.search(f"{title} {text}"), "say in which unit"


@pytest.mark.parametrize("card", CARDS)
def test_fields_have_distinct_places_and_titles(card: str) -> None:
    for part in ("position", "title"):
        assert len({shown[part] for shown in CARDS[card].values()}) == len(CARDS[card])


@pytest.mark.parametrize(("card", "first"), ORDERS.items())
def test_what_everybody_sets_comes_first(card: str, first: list[str]) -> None:
    assert list(CARDS[card])[: len(first)] == first


@pytest.mark.parametrize(("card", "last"), LAST.items())
def test_what_few_people_set_comes_last(card: str, last: list[str]) -> None:
    assert list(CARDS[card])[-len(last) :] == last


@pytest.fixture(scope="module")
def deployment(prefect_api: None) -> Iterator[UUID]:
    """The flow, deployed on a real server, which knows its schema."""
    with get_client(sync_client=True) as client:
        flow = client.create_flow(align)
        yield client.create_deployment(
            flow, "form", parameter_openapi_schema=SCHEMAS["align"], enforce_parameter_schema=True
        )


def submit(deployment: UUID, parameters: dict[str, Any]) -> FlowRun:
    """Submit a run as the form does and carry it out as a worker does; the run once it has ended."""
    with get_client(sync_client=True) as client:
        run = client.create_flow_run_from_deployment(deployment, parameters=parameters)
        with pytest.raises(InputError):
            run_flow(align, flow_run=run)
        return client.read_flow_run(run.id)


@dataclass(frozen=True)
class Case:
    """What the server lets through, and what the flow says to it."""

    says: str
    recipe: dict[str, Any] = field(default_factory=dict)
    """Sections of the recipe with other values in them."""
    parameters: dict[str, Any] = field(default_factory=dict)
    """Parameters beside the recipe."""


CASES = {
    "batch without whole groups": Case(
        "recipe.grpo: batch_size 60 is not divisible by num_generations 8; use batch_size=56 or 64, or a "
        "num_generations that divides it",
        {"grpo": {"batch_size": 60, "num_generations": 8}},
    ),
    "dataset that is not there": Case(
        "sft.dataset: /nowhere/rows.jsonl: no such file", {"sft": {"dataset": {"path": "/nowhere/rows.jsonl"}}}
    ),
    "gate on what is not measured": Case(
        "gate: this recipe measures no 'exact_mach' to go by; did you mean 'exact_match'?",
        {"gate": {"better": [{"measure": "exact_mach"}]}},
    ),
    "run that is not there": Case("not a readable run record", parameters={"resume": "20200101-000000-aaaaaaaa"}),
    "stage that the recipe lacks": Case(
        "force: the recipe has no stage 'dpo' to train", {"dpo": None}, parameters={"force": ["dpo"]}
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_what_the_schema_lets_through_is_refused_at_once_in_one_message(
    case: Case, deployment: UUID, tiny_model: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALIGN_HOME", str(tmp_path / "home"))
    asked = tiny_recipe(tiny_model, tiny_data, **case.recipe)
    run = submit(deployment, {"recipe": asked, **case.parameters})
    assert run.state
    assert run.state.is_failed()
    message = str(run.state.message)
    assert case.says in message
    assert re.match(r"[A-Z][\w ]+: InputError: ", message)
    assert len(message.splitlines()) == 1
    assert not re.search(r"pydantic|https?:|Traceback|Value error|validation error", message)
    assert run.total_run_time.total_seconds() < SECONDS_TO_REFUSE
    assert not (tmp_path / "home").exists()


@pytest.mark.slow
def test_a_parameter_that_the_flow_does_not_have_is_named(deployment: UUID, tiny_model: Path, tiny_data: Path) -> None:
    asked = {"recipe": tiny_recipe(tiny_model, tiny_data), "recipe_nme": "x"}
    with get_client(sync_client=True) as client:
        run = client.create_flow_run_from_deployment(deployment, parameters=asked)
        with pytest.raises(SignatureMismatchError):  # Prefect's engine, which leaves it to the worker to say `Crashed`
            run_flow(align, flow_run=run)
        for hook in align.on_crashed_hooks:
            hook(align, run, Crashed())
        state = client.read_flow_run(run.id).state
    assert state
    assert state.is_failed()
    assert state.message == "Wrong parameters: unknown key 'recipe_nme'; did you mean 'recipe_name'?"


@pytest.mark.slow
def test_what_the_schema_refuses_is_no_run(deployment: UUID, tiny_model: Path, tiny_data: Path) -> None:
    asked = tiny_recipe(tiny_model, tiny_data, sft={"lerning_rate": 1})
    with get_client(sync_client=True) as client, pytest.raises(PrefectHTTPStatusError, match="lerning_rate"):
        client.create_flow_run_from_deployment(deployment, parameters={"recipe": asked})
