"""`align chat`: replies stream, two checkpoints answer side by side, a reward model scores, Ctrl-C stops a reply."""

import contextlib
import fcntl
import io
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from rich.console import Console

from flows.__main__ import main
from flows.chatting import converse
from flows.conversing import Chat, Pieces, Speaker
from models.errors import InputError
from tasks.core.generation import ChatModel, chat_generate, load_chat, stream
from tasks.store import ArtifactStore
from tests.folders import content_of, name_of, publish
from tests.published import Shelf, build_model, build_tokenizer

slow = pytest.mark.slow
ROOT = Path(__file__).resolve().parent.parent
CONVERSATIONS = [
    [{"role": "user", "content": "hello"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "wie groß ist 日本?"}],
    [{"role": role, "content": "the answer is"} for role in ("user", "assistant", "user")],
]


@pytest.fixture
def shelf_home(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> Shelf:
    """The shelf, as the artifact root that the command uses."""
    monkeypatch.setenv("ALIGN_HOME", str(shelf.store.home))
    return shelf


@pytest.fixture(scope="module")
def model(shelf: Shelf) -> ChatModel:
    return load_chat(shelf.path(shelf.sft))


@slow
@pytest.mark.parametrize("messages", CONVERSATIONS, ids=["plain", "system prompt", "third turn"])
@pytest.mark.parametrize("max_new_tokens", [1, 40])
def test_pieces_are_the_reply(model: ChatModel, messages: list[dict[str, str]], max_new_tokens: int) -> None:
    pieces = list(stream(model, messages, max_new_tokens=max_new_tokens))
    assert "".join(pieces) == chat_generate(model, messages, max_new_tokens=max_new_tokens)


@slow
def test_a_reply_comes_as_it_is_generated(long_winded: Path) -> None:
    model = load_chat(long_winded / "checkpoints" / name_of("sft"))
    pieces = list(stream(model, CONVERSATIONS[0], max_new_tokens=20))
    assert sum(map(bool, pieces)) == 20


@slow
def test_replies_can_be_sampled(model: ChatModel) -> None:
    drawn = {"".join(stream(model, CONVERSATIONS[0], max_new_tokens=8, temperature=5.0)) for _ in range(4)}
    assert len(drawn) > 1


@slow
def test_a_closed_stream_ends_the_generation(model: ChatModel) -> None:
    begun = time.monotonic()
    list(stream(model, CONVERSATIONS[0], max_new_tokens=400))
    whole = time.monotonic() - begun
    reply = stream(model, CONVERSATIONS[0], max_new_tokens=400)
    next(reply)
    begun = time.monotonic()
    reply.close()
    assert time.monotonic() - begun < whole / 2


@slow
def test_a_reply_ends_where_the_positions_end(model: ChatModel) -> None:
    positions = model.model.config.max_position_embeddings
    text = "x" * (positions - 60)
    assert len("".join(stream(model, [{"role": "user", "content": text}], max_new_tokens=10**6))) < positions
    with pytest.raises(InputError, match=rf"tokens and the model {positions} positions; begin a new one"):
        next(stream(model, [{"role": "user", "content": "x" * positions}]))


@slow
def test_what_the_template_refuses_is_said(shelf: Shelf) -> None:
    strict = load_chat(shelf.path(shelf.sft))
    strict.tokenizer.chat_template = "{{ raise_exception('no system role') }}"
    with pytest.raises(InputError, match="template refuses this conversation: no system role"):
        next(stream(strict, CONVERSATIONS[1]))


@slow
def test_an_error_in_the_generation_is_raised(model: ChatModel) -> None:
    with pytest.raises(ValueError, match="temperature"):
        list(stream(model, CONVERSATIONS[0], temperature=-1.0))


def _echo(messages: Sequence[dict[str, str]]) -> Pieces:
    """Says how many messages there are and repeats the last, in three pieces."""
    yield from (str(len(messages)), " ", messages[-1]["content"])


def test_a_speaker_remembers_what_was_said() -> None:
    speaker = Speaker("one", _echo, "Be brief.")
    assert ["".join(speaker.reply(text)) for text in ("a", "b")] == ["2 a", "4 b"]
    assert [turn["role"] for turn in speaker.messages] == ["system", *["user", "assistant"] * 2]
    speaker.begin(None)
    assert (speaker.messages, "".join(speaker.reply("c"))) == ([], "1 c")


@pytest.mark.parametrize(("pieces", "remembered"), [(0, []), (1, ["a", "1"]), (2, ["a", "1 "])])
def test_a_reply_that_is_cut_short_stays_as_far_as_it_got(pieces: int, remembered: list[str]) -> None:
    speaker = Speaker("one", _echo)
    reply = speaker.reply("a")
    for _ in range(pieces):
        next(reply)
    reply.close()
    assert [turn["content"] for turn in speaker.turns] == remembered


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["sft", "--json"], 2, ("--json", "add --prompt TEXT")),
        (["sft", "sft", "--prompt", "x"], 2, (name_of("sft"), "name it once")),
        (["reward"], 2, (name_of("reward"), "is a reward model", "name it second")),
        (["reward", "sft", "--prompt", "x"], 2, (name_of("reward"), "writes none", "name it second")),
        (["sft", "nothing"], 2, ("'nothing' matches nothing",)),
        (["sft", "dpo", "reward"], 2, ("unknown argument 'reward'",)),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_wrong_words(
    store: ArtifactStore, capsys: pytest.CaptureFixture[str], words: list[str], code: int, says: tuple[str, ...]
) -> None:
    assert main(["chat", *words]) == code
    said = capsys.readouterr()
    assert all(part in said.err for part in says)
    assert said.out == ""


def test_a_damaged_second_checkpoint_is_found_before_any_is_loaded(
    store: ArtifactStore, capsys: pytest.CaptureFixture[str]
) -> None:
    (store.folder("checkpoint", name_of("dpo")) / "config.json").write_text("x")
    assert main(["chat", "sft", "dpo", "--prompt", "x"]) == 1
    assert "run its recipe again" in capsys.readouterr().err


def _said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["chat", *words, "--max_new_tokens", "8"]) == 0
    return capsys.readouterr().out


@slow
def test_the_replies_to_one_prompt(shelf_home: Shelf, capsys: pytest.CaptureFixture[str]) -> None:
    sft, dpo = shelf_home.sft, shelf_home.dpo
    alone = {name: _said(capsys, name, "--prompt", "hello") for name in (sft, dpo)}
    for pair in ((sft, dpo), (dpo, sft)):
        expected = "".join(f"{name}:\n{alone[name]}" for name in pair)
        assert _said(capsys, *pair, "--prompt", "hello") == expected
        replies = json.loads(_said(capsys, *pair, "--prompt", "hello", "--json"))
        assert {name: f"{reply}\n" for name, reply in replies.items()} == alone
        assert tuple(replies) == pair


@slow
def test_a_reward_model_scores_the_reply(shelf_home: Shelf, capsys: pytest.CaptureFixture[str]) -> None:
    both = (shelf_home.sft, shelf_home.reward)
    said = json.loads(_said(capsys, *both, "--prompt", "hello", "--json"))
    assert list(said) == list(both)
    lines = _said(capsys, *both, "--prompt", "hello").splitlines()
    assert lines[-1] == f"{shelf_home.reward}: score {said[shelf_home.reward]:.4g}"


def test_a_conversation_in_a_pipe(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    lines = ["a", "b", "/reset", "/help", "c", "/nonsense", "/system Say less.", "/etc/hosts?", "/system", "d", "", "e"]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
    converse(Chat(Console(), [Speaker("one", _echo, "Be brief.")]))
    said = capsys.readouterr()
    assert said.out.splitlines() == ["2 a", "4 b", "2 c", "2 /etc/hosts?", "1 d"]
    for part in ("/system TEXT", "no command '/nonsense'; /help lists them", "begins anew"):
        assert part in said.err


def test_what_a_model_refuses_ends_no_conversation(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse_long(messages: Sequence[dict[str, str]]) -> Pieces:
        if len(messages) > 1:
            raise InputError("the conversation is too long")
        yield from _echo(messages)

    monkeypatch.setattr("sys.stdin", io.StringIO("a\nb\n/reset\nc\n/quit\nd\n"))
    converse(Chat(Console(), [Speaker("one", refuse_long)]))
    said = capsys.readouterr()
    assert (said.out, "too long; /reset begins anew" in said.err) == ("1 a\n1 c\n", True)


@pytest.mark.parametrize(("width", "columns"), [(80, False), (120, True)])
def test_two_stand_side_by_side_where_there_is_room(width: int, columns: bool) -> None:
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=width, height=10)
    with contextlib.redirect_stdout(output):
        Chat(console, [Speaker(name, _echo) for name in ("one", "two")]).show("line\n" * 30 + "\x1b[2Jend")
    last = _without_sequences(output.getvalue()).splitlines()[-1]
    assert last.count("\ufffd[2Jend") == 1 + columns
    assert "\x1b[2J" not in output.getvalue()


def _without_sequences(shown: str) -> str:
    """What a terminal shows, without the sequences that command it."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)


_IN_ITS_TERMINAL = (
    "import fcntl, os, signal, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    "signal.signal(signal.SIGINT, signal.SIG_DFL); "  # a shell that tests in the background has it ignored
    "os.execv(sys.argv[1], sys.argv[1:])"
)


class Terminal:
    """A process that talks to a terminal of its own."""

    def __init__(self, command: list[str], width: int) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, width, 0, 0))
        # A size in the environment, which tests in several processes have, would come before the terminal's own.
        environment = {name: value for name, value in os.environ.items() if name not in {"COLUMNS", "LINES"}}
        self.process = subprocess.Popen(
            [sys.executable, "-c", _IN_ITS_TERMINAL, *command], cwd=ROOT, env={**environment, "TERM": "xterm"},
            stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
        )  # fmt: skip
        os.close(slave)

    def send(self, text: str) -> None:
        """Type that text."""
        os.write(self._master, text.encode())

    def read_until(self, pattern: str, seconds: float = 60.0) -> str:
        """What is shown from now on until the pattern appears, without the terminal's own sequences."""
        shown, end = "", time.monotonic() + seconds
        while not re.search(pattern, shown):
            ready, _, _ = select.select([self._master], [], [], end - time.monotonic())
            if not ready:
                self.process.kill()
                self.process.wait()
                pytest.fail(f"no {pattern} in {shown!r}")
            shown = _without_sequences(shown + os.read(self._master, 65536).decode(errors="replace"))
        return shown

    def close(self) -> int:
        """The process's exit code, once it has ended."""
        try:
            return self.process.wait(60)
        finally:
            self.process.kill()
            self.process.wait()
            os.close(self._master)


@pytest.fixture(scope="module")
def long_winded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact root with two models that go on for minutes where nobody stops them."""
    folder = tmp_path_factory.mktemp("long-winded")
    model = build_model(max_position_embeddings=200_000)
    tokenizer = build_tokenizer()
    unreadable = [token for token in range(len(tokenizer)) if not tokenizer.decode([token]).isascii()]
    model.generation_config.suppress_tokens = [*unreadable, *tokenizer.all_special_ids]
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    store = ArtifactStore(folder / "home")
    for stage in ("sft", "dpo"):
        publish(store, stage, files=content_of(folder / "model"))
    return store.home


@slow
@pytest.mark.parametrize("width", [60, 160], ids=["one after the other", "side by side"])
def test_a_conversation_with_two_in_a_terminal(long_winded: Path, monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    monkeypatch.setenv("ALIGN_HOME", str(long_winded))
    names = (name_of("sft"), name_of("dpo"))
    command = [sys.executable, "-m", "flows", "chat", *names, "--max_new_tokens", "100000"]
    terminal = Terminal(command, width)
    terminal.read_until("> ")
    terminal.send("hello\n")
    if width < 100:
        assert names[1] not in terminal.read_until(f"{names[0]}:\r\n.+")
        terminal.send("\x03")
        terminal.read_until(rf"\[stopped\]\r\n{names[1]}:\r\n.+")
    else:
        terminal.read_until(rf"{names[0]} +{names[1]} *\r\n[^ ]+ *[^ ]+")
    time.sleep(0.5)
    terminal.send("\x03")
    terminal.read_until(r"\[stopped\]\r\n> ")
    terminal.send("/reset\n")
    terminal.read_until("begins anew.\r\n> ")
    time.sleep(0.5)  # a signal between the prompt and the wait for a key would only be seen with the next key
    terminal.send("\x03")
    assert terminal.close() == 0


@slow
def test_an_interrupt_ends_the_reply_to_one_prompt(long_winded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGN_HOME", str(long_winded))
    command = [sys.executable, "-m", "flows", "chat", "sft", "--max_new_tokens", "100000", "--prompt", "x"]
    terminal = Terminal(command, width=80)
    terminal.read_until(".{20}")
    terminal.process.send_signal(signal.SIGINT)
    terminal.read_until("interrupted")
    assert terminal.close() == 130
