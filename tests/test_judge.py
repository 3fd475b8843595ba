"""The judge, behind a server that speaks the OpenAI protocol: one that reads, favours a place, or fails."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from pydantic import SecretStr

from models.errors import InputError
from models.evaluation import Estimate, Sample
from models.measurement import Judge
from settings.settings import Settings
from tasks.judge import judged_win_rate

pytestmark = pytest.mark.slow
Say = Callable[[str], str | int]


class Bench:
    """The server, and what it was asked."""

    def __init__(self, home: Path) -> None:
        self.say: Say = lambda question: "A"
        self.asked: list[str] = []
        self.keys: set[str] = set()
        bench = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                question = request["messages"][-1]["content"]
                bench.asked.append(question)
                bench.keys.add(self.headers["Authorization"])
                said = bench.say(question)
                message = {"role": "assistant", "content": str(said)}
                choice = {"index": 0, "finish_reason": "stop", "message": message}
                reply = {
                    "id": "1",
                    "object": "chat.completion",
                    "created": 0,
                    "model": request["model"],
                    "choices": [choice],
                }
                body = json.dumps(reply).encode()
                self.send_response(said if isinstance(said, int) else 200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Nothing: the test's output is its own."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        url = f"http://127.0.0.1:{self.server.server_port}/v1"
        self.settings = Settings(home=home, judge_url=url, judge_api_key=SecretStr("open sesame"))
        self.told: list[str] = []

    def rate(self, ours: list[str], theirs: list[str], **spec: object) -> tuple[Estimate | None, int]:
        """Share of the prompts that the judge gives to `ours`, and how often it was silent."""
        judge = Judge.model_validate({"model": "solomon"} | spec)
        return judged_win_rate(judge, replies(ours), replies(theirs), self.settings, self.told.append)


def replies(texts: list[str]) -> list[Sample]:
    return [
        Sample(prompt=f"What is {row}?", reply=text, answer=(), correct=False, kind="all")
        for row, text in enumerate(texts)
    ]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path / "home")
    yield bench
    bench.server.shutdown()
    bench.server.server_close()


def longest(question: str) -> str:
    """A verdict that does not depend on the order."""
    first, second = question.split("[Reply A]\n")[1].split("\n\nWhich reply", maxsplit=1)[0].split("\n\n[Reply B]\n")
    return "tie" if len(first) == len(second) else "A" if len(first) > len(second) else "Reply B."


def test_it_says_whose_replies_are_better(bench: Bench) -> None:
    bench.say = longest
    found, silent = bench.rate(["long", "a", "same", "ab"], ["x", "longer", "same", "cd"])
    assert found
    assert (found.value, found.n, silent) == ((1 + 0 + 0.5 + 0.5) / 4, 4, 0)
    assert len(bench.asked) == 2 * 3  # equal replies need no judge
    assert bench.keys == {"Bearer open sesame"}


def test_a_verdict_that_follows_the_place_is_a_tie(bench: Bench) -> None:
    found, _ = bench.rate(["a", "b"], ["c", "d"])
    assert found
    assert found.value == 0.5


def test_it_sees_what_was_said_before(bench: Bench) -> None:
    ours, theirs = (
        [one.model_copy(update={"context": "system: Be brief."}) for one in replies([text])] for text in "ab"
    )
    judged_win_rate(Judge(model="solomon"), ours, theirs, bench.settings, bench.told.append)
    assert all("[Said before]\nsystem: Be brief.\n\n[Message]\nWhat is 0?" in asked for asked in bench.asked)


def test_the_same_question_is_paid_for_once(bench: Bench) -> None:
    bench.say = longest
    first = bench.rate(["long", "a"], ["x", "longer"])
    asked = len(bench.asked)
    assert bench.rate(["long", "a"], ["x", "longer"]) == first
    assert len(bench.asked) == asked
    bench.rate(["long", "a"], ["x", "longer"], criterion="Which is kinder?")
    assert len(bench.asked) == 2 * asked


def test_only_so_many_rows_are_judged(bench: Bench) -> None:
    found, _ = bench.rate(["a"] * 5, ["b"] * 5, max_rows=2)
    assert found
    assert found.n == 2


@pytest.mark.parametrize(
    "answer", ["I would rather not say.", "A better reply is B.", 400], ids=["evasive", "ambiguous", "refusing"]
)
def test_silence_costs_the_row_only_and_is_told(bench: Bench, answer: str | int) -> None:
    bench.say = lambda question: answer if "What is 1?" in question else longest(question)
    found, silent = bench.rate(["long", "long"], ["x", "x"])
    assert found
    assert (found.value, found.n, silent) == (1.0, 1, 1)
    assert "gave no verdict on 1 prompts" in bench.told[0]
    assert "open sesame" not in bench.told[0]
    bench.say = longest  # what failed is asked again
    again, silent = bench.rate(["long", "long"], ["x", "x"])
    assert again
    assert (again.n, silent) == (2, 0)


def test_without_a_server_it_says_what_to_set(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="ALIGN_JUDGE_URL"):
        judged_win_rate(Judge(model="m"), replies(["a"]), replies(["b"]), Settings(home=tmp_path), print)
