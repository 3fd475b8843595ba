"""The command that talks to checkpoints, `align chat`: one, two with the same messages, or one and its reward model.

Heavy imports stay inside the functions.
"""
# ruff: noqa: T201 - a command prints

import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from flows.reading import make_whole, open_store, print_json
from models.errors import DamagedArtifact, InputError

if TYPE_CHECKING:
    from flows.conversing import Chat, Judge, Speaker
    from models.artifacts import Manifest
    from tasks.store import ArtifactStore

_WELCOME = "Type a message; an empty line or Ctrl-D ends the conversation, Ctrl-C stops a reply, /help tells more."
_HELP = """\
/reset         begin anew
/system TEXT   begin anew with this system prompt; without a text, with none
/help          this
/quit          end, as an empty line does"""


def chat(arguments: Namespace) -> int:
    """Talk to one or two checkpoints."""
    if arguments.json and arguments.prompt is None:
        raise InputError("--json prints the replies to one prompt; add --prompt TEXT, or leave --json out")
    chat = _load(open_store(), arguments)
    if arguments.json:
        print_json(chat.replies(arguments.prompt))
    elif arguments.prompt is not None:
        chat.show(arguments.prompt)
    else:
        converse(chat)
    return 0


def _load(store: "ArtifactStore", arguments: Namespace) -> "Chat":
    """Find, check and load what the arguments name; nothing is loaded before all of it is found to be right."""
    from flows.conversing import Chat
    from flows.terminal import make_console

    chosen = [_choose(store, wanted) for wanted in (arguments.checkpoint, arguments.other) if wanted is not None]
    (first, manifest), *others = chosen
    if _is_scorer(manifest):
        remedy = "choose another stage, or name it second to have it score the first one's replies"
        raise InputError(f"{first.name} is a reward model, which scores texts and writes none; {remedy}")
    if first in [path for path, _ in others]:
        raise InputError(f"'{arguments.checkpoint}' and '{arguments.other}' are both {first.name}; name it once")
    for path, _ in chosen:
        make_whole(store, path)
    speakers = [_speaker(*each, arguments) for each in chosen if not _is_scorer(each[1])]
    judges = [_judge(path) for path, manifest in others if _is_scorer(manifest)]
    return Chat(make_console(), speakers, judges[0] if judges else None)


def _choose(store: "ArtifactStore", wanted: str) -> "tuple[Path, Manifest]":
    """The folder that a word means, every byte of it read.

    Raises:
        InputError: it means none, or several.
        DamagedArtifact: the folder is damaged.
    """
    from tasks.finding import resolve
    from tasks.store import damage

    path, manifest = resolve(store, wanted)
    if damaged := damage(path):
        raise DamagedArtifact(f"{damaged[0]}; run its recipe again to make it anew")
    return path, manifest


def _is_scorer(manifest: "Manifest") -> bool:
    return manifest.identity.get("stage") == "reward"


def _speaker(path: Path, manifest: "Manifest", arguments: Namespace) -> "Speaker":
    from flows.conversing import Speaker
    from tasks.core.generation import load_chat, stream

    model = load_chat(path, device=_device())
    answer = partial(stream, model, max_new_tokens=arguments.max_new_tokens, temperature=arguments.temperature)
    return Speaker(path.name, answer, manifest.origin.get("system_prompt"))


def _judge(path: Path) -> "Judge":
    from flows.conversing import Judge
    from tasks.core.loading import load_scorer, load_tokenizer
    from tasks.core.scoring import Dialog, conversation_tokens, reward_scores

    scorer, tokenizer = load_scorer(path, "auto", _device()).eval(), load_tokenizer(path)

    def score(conversation: "Sequence[dict[str, str]]") -> float:
        return reward_scores(scorer, tokenizer, [Dialog(conversation_tokens(tokenizer, conversation), 0)])[0]

    return Judge(path.name, score)


def _device() -> str:
    from settings.machine import inspect_machine
    from settings.settings import load_settings

    return inspect_machine(load_settings()).device


def converse(chat: "Chat") -> None:
    """Answer line after line of the standard input, or do what it commands, until it ends."""
    with suppress(ImportError):
        import readline  # noqa: F401 - gives `input` a history and arrow keys
    print(_WELCOME, file=sys.stderr)
    while text := _ask():
        command, _, rest = text.partition(" ")
        if command == "/quit":
            return
        if command == "/reset":
            _begin(chat, [speaker.system_prompt for speaker in chat.speakers])
        elif command == "/system":
            _begin(chat, [rest.strip() or None] * len(chat.speakers))
        elif command == "/help":
            print(_HELP, file=sys.stderr)
        elif command[:1] == "/" and command[1:].isalpha():
            print(f"align: there is no command '{command}'; /help lists them", file=sys.stderr)
        else:
            _reply(chat, text)


def _ask() -> str:
    """The user's next line; empty where there is none."""
    try:
        return input("> " * (sys.stdin.isatty() and sys.stdout.isatty())).strip()
    except (EOFError, KeyboardInterrupt):
        print(file=sys.stderr)
        return ""


def _begin(chat: "Chat", system_prompts: "Sequence[str | None]") -> None:
    for speaker, system_prompt in zip(chat.speakers, system_prompts, strict=True):
        speaker.begin(system_prompt)
    print("The conversation begins anew.", file=sys.stderr)


def _reply(chat: "Chat", text: str) -> None:
    """Show the replies to a message; what a model refuses ends no conversation."""
    try:
        chat.show(text, _stoppable)
    except InputError as error:
        print(f"align: {error}; /reset begins anew", file=sys.stderr)


@contextmanager
def _stoppable() -> Iterator[None]:
    """An interrupt ends what is inside, and nothing else."""
    try:
        yield
    except KeyboardInterrupt:
        print(" [stopped]", file=sys.stderr)
