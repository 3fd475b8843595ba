"""Tools, calls and results reach the model: what the trainers tokenise is what the chat template makes of a row."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

from models.artifacts import Dataset
from models.errors import StageError
from models.recipe import Recipe
from models.run import RunRecord
from models.sources import DatasetSource
from tasks.core.example import first_and_all
from tasks.core.loading import load_policy, load_scorer, load_tokenizer, training_dataset
from tasks.core.rendering import refuse_unshown_tools, rendered
from tasks.core.scoring import dialog
from tasks.data.card import read_card
from tasks.data.formats.reading import Role
from tasks.data.lines import Row
from tasks.data.snapshot import read_rows
from tests import prepared
from tests.tiny import write_rows

TEMPLATE = (
    "{% if tools %}tools {{ tools | tojson }}\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}{{ ' ' + m.name if m.name }}\n{{ m.content }}"
    "{% for call in m.tool_calls or [] %}call {{ call.function.name }}{{ call.function.arguments | tojson }}"
    "{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TOOLS = [{"name": "weather", "parameters": {"type": "object", "properties": {"town": {"type": "string"}}}}]
CALL = {"name": "weather", "arguments": {"town": "Oslo", "days": [1, 2]}}
OTHER_CALL = {"name": "weather", "arguments": {"place": {"north": 60}}}
DIALOGUE = [
    {"role": "user", "content": "Weather?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "name": "weather", "content": "rain"},
]
SAYS = {"role": "assistant", "content": "Rain."}
DEMONSTRATIONS: list[Row] = [
    {"messages": [*DIALOGUE, SAYS], "tools": TOOLS},
    {"messages": [DIALOGUE[0], {"role": "assistant", "tool_calls": [OTHER_CALL]}], "tools": json.dumps(TOOLS)},
    {"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]},
]
PAIRS: list[Row] = [
    {"prompt": DIALOGUE, "chosen": [SAYS], "rejected": "Sun.", "tools": TOOLS},
    {
        "prompt": "Weather?",
        "chosen": [{"role": "assistant", "tool_calls": [CALL]}],
        "rejected": "Rain.",
        "tools": TOOLS,
    },
]


@pytest.fixture
def tokenizer(tiny_model: Path) -> PreTrainedTokenizerBase:
    """The tiny model's, with a template that shows tools."""
    made = load_tokenizer(tiny_model)
    made.chat_template = TEMPLATE
    return made


def frozen(folder: Path, rows: list[Row], role: Role) -> Dataset:
    """A snapshot of the rows."""
    return prepared.frozen(folder, DatasetSource(path=str(write_rows(folder / "source.jsonl", rows))), role)


def snapshot_rows(dataset: Dataset) -> list[Row]:
    """The rows of a snapshot."""
    return list(read_rows(dataset.path))


def options(folder: Path) -> dict[str, Any]:
    """What a trainer needs to be built here."""
    return {
        "output_dir": str(folder),
        "use_cpu": True,
        "bf16": False,
        "activation_checkpointing": False,
        "report_to": [],
        "max_length": 512,
    }


def test_a_call_is_shown_in_the_order_in_which_it_was_written(tmp_path: Path, tokenizer: Any) -> None:
    row = snapshot_rows(frozen(tmp_path, DEMONSTRATIONS[:1], "sft"))[0]
    shown = rendered(tokenizer, row["prompt"], tools=row["tools"], add_generation_prompt=True)
    assert shown == (
        'tools [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": '
        '{"town": {"type": "string"}}}}}]\n<|im_start|>user\nWeather?<|im_end|>\n<|im_start|>assistant\n'
        'call weather{"town": "Oslo", "days": [1, 2]}<|im_end|>\n<|im_start|>tool weather\nrain<|im_end|>\n'
        "<|im_start|>assistant\n"
    )


def test_rows_reach_the_trainer_with_their_own_keys_alone(tmp_path: Path, tokenizer: Any) -> None:
    made = training_dataset(frozen(tmp_path, DEMONSTRATIONS, "sft"), ("prompt", "completion", "tools"), tokenizer)
    assert made[0]["prompt"][1]["tool_calls"] == [{"type": "function", "function": CALL}]
    assert made[1]["completion"][0]["tool_calls"][0]["function"]["arguments"] == OTHER_CALL["arguments"]
    assert made[2]["completion"] == [{"role": "assistant", "content": "Hi"}]
    assert made[2]["tools"] is None


def test_sft_trains_on_what_the_template_shows(tmp_path: Path, tiny_model: Path, tokenizer: Any) -> None:
    dataset = frozen(tmp_path, DEMONSTRATIONS, "sft")
    trainer = SFTTrainer(
        model=load_policy(tiny_model, "auto"),
        args=SFTConfig(**options(tmp_path)),
        train_dataset=training_dataset(dataset, ("prompt", "completion", "tools"), tokenizer),
        processing_class=tokenizer,
    )
    for made, row in zip(trainer.train_dataset, snapshot_rows(dataset), strict=True):
        expected = dialog(tokenizer, row["prompt"], row["completion"], row.get("tools"))
        assert made["input_ids"] == expected.tokens
        assert [label != -100 for label in made["labels"]].index(True) == expected.start


@pytest.mark.parametrize("stage", ["dpo", "reward"])
def test_pairs_train_on_what_the_template_shows(tmp_path: Path, tiny_model: Path, tokenizer: Any, stage: str) -> None:
    dataset = frozen(tmp_path, PAIRS, "preference")
    table = training_dataset(dataset, ("prompt", "chosen", "rejected", "tools"), tokenizer)
    common = {"train_dataset": table, "processing_class": tokenizer}
    if stage == "dpo":
        trainer = DPOTrainer(model=load_policy(tiny_model, "auto"), args=DPOConfig(**options(tmp_path)), **common)
    else:
        scorer = load_scorer(tiny_model, "auto")
        scorer.config.pad_token_id = tokenizer.pad_token_id
        trainer = RewardTrainer(model=scorer, args=RewardConfig(**options(tmp_path)), **common)
    for made, row in zip(trainer.train_dataset, snapshot_rows(dataset), strict=True):
        for side in ("chosen", "rejected"):
            found = made.get("prompt_ids", []) + made[f"{side}_ids"]
            assert found == dialog(tokenizer, row["prompt"], row[side], row["tools"]).tokens


@pytest.mark.parametrize("rows", [DEMONSTRATIONS[:1], DEMONSTRATIONS[1:], DEMONSTRATIONS[::-1]])
def test_a_template_that_shows_no_tools_is_refused(tmp_path: Path, tiny_model: Path, rows: list[Row]) -> None:
    dataset = frozen(tmp_path, rows, "sft")
    with pytest.raises(StageError, match="leaves out tools and their calls \\(no 'weather'"):
        training_dataset(dataset, ("prompt", "completion", "tools"), load_tokenizer(tiny_model))


STRICT = (
    "{% for m in messages %}{% if not loop.first and m.role == loop.previtem.role %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% endfor %}" + TEMPLATE
)
NO_TOOLS = TEMPLATE.partition("{% endif %}")[2]
NO_CALLS = "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}{{ m.role }}{{ m.content }}{% endfor %}"
NAMED = [{"role": "user", "content": "Ask weather."}, *DIALOGUE[1:]]


@pytest.mark.parametrize(
    ("template", "row", "role", "shown"),
    [
        (STRICT, PAIRS[0], "preference", True),
        (STRICT, PAIRS[1], "preference", True),
        (NO_TOOLS, {"messages": [*DIALOGUE, SAYS], "tools": TOOLS}, "sft", False),
        (NO_CALLS, {"messages": [*NAMED, SAYS], "tools": TOOLS}, "sft", False),
        (NO_CALLS, {"messages": [{"role": "user", "content": "Ask weather."}, SAYS], "tools": TOOLS}, "sft", True),
        (NO_CALLS, PAIRS[1], "preference", False),
    ],
)
def test_what_a_template_leaves_out_is_seen_by_what_changes_the_text(
    tmp_path: Path, tokenizer: Any, template: str, row: Row, role: Role, shown: bool
) -> None:
    tokenizer.chat_template = template
    rows = snapshot_rows(frozen(tmp_path, [row], role))
    if shown:
        refuse_unshown_tools(tokenizer, rows)
    else:
        with pytest.raises(StageError, match="no 'weather'"):
            refuse_unshown_tools(tokenizer, rows)


def test_rows_without_tools_suit_every_template(tmp_path: Path, tiny_model: Path) -> None:
    dataset = frozen(tmp_path, DEMONSTRATIONS[2:], "sft")
    assert training_dataset(dataset, ("prompt", "completion", "tools"), load_tokenizer(tiny_model)).column_names == [
        "prompt",
        "completion",
    ]


@pytest.mark.slow
def test_cards_tell_what_the_base_model_makes_of_the_rows(finished_run: tuple[Path, RunRecord], recipe: Recipe) -> None:
    cards = [read_card(folder) for folder in (finished_run[0] / "datasets").iterdir() if folder.name[0] != "."]
    assert len(cards) == 5
    for card in cards:
        assert card is not None
        assert card.tokens is not None
        assert card.example is not None
        assert card.tokens.mean * card.rows == pytest.approx(card.tokens.total)
        assert card.tokens.longest >= card.example.tokens > 0
    assert {card.tokens.limit for card in cards if card and card.tokens and card.role == "sft"} == {
        recipe.sft.max_length
    }


def test_tokens_of_many_rows_are_not_counted_unasked(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.core.example.MOST_ROWS", 2)
    counted = [first_and_all(frozen(tmp_path, DEMONSTRATIONS[:rows], "sft").path, tiny_model, 4)[1] for rows in (2, 3)]
    assert counted[0] is not None
    assert counted[0].rows_over == 2
    assert counted[1] is None
