"""lm-evaluation-harness on a tiny model, with a task of the test's own."""

import json
from pathlib import Path
from statistics import fmean

import pytest

from models.errors import InputError
from models.measurement import Harness
from tasks.core.generation import ChatModel, load_chat
from tasks.core.harness import run_harness
from tasks.core.scoring import Dialog, log_likelihoods, prompt_tokens

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # the harness's own
]
WRONG = "no"
TASK = """\
task: tiny_sums
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_target: 0
target_delimiter: ""
doc_to_choice: "{{{{[right, wrong]}}}}"
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
"""


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    rows = [{"question": f"{n} + 1", "right": str(n + 1), "wrong": WRONG} for n in range(6)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "tiny_sums.yaml").write_text(TASK.format(file=folder / "rows.jsonl"))
    return folder


def test_a_task_of_ones_own_gives_figures_with_intervals(tiny_model: Path, tasks: Path) -> None:
    chat = load_chat(tiny_model)
    asked = Harness(tasks=("tiny_sums",), include_path=str(tasks))
    found = run_harness(asked, chat.model, chat.tokenizer)["tiny_sums acc"]
    assert found.n == 6
    assert found.value == fmean(_likelier(chat, f"{n} + 1", str(n + 1), WRONG) for n in range(6))
    assert run_harness(asked.model_copy(update={"limit": 2}), chat.model, chat.tokenizer)["tiny_sums acc"].n == 2


def _likelier(chat: ChatModel, question: str, right: str, wrong: str) -> bool:
    """Whether the model finds the right choice likelier, as the harness asks: after the question in the template."""
    prompt = prompt_tokens(chat.tokenizer, [{"role": "user", "content": question}])

    def choice(text: str) -> Dialog:
        return Dialog(prompt + chat.tokenizer.encode(text, add_special_tokens=False), len(prompt))

    found = log_likelihoods(chat.model, chat.tokenizer, [choice(right), choice(wrong)])
    return found[0] > found[1]


def test_an_unknown_task_is_refused(tiny_model: Path, tasks: Path) -> None:
    chat = load_chat(tiny_model)
    asked = Harness(tasks=("tiny_summs",), include_path=str(tasks))
    with pytest.raises(InputError, match="tiny_summs is unknown"):
        run_harness(asked, chat.model, chat.tokenizer)
