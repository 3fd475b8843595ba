"""Who takes part in a chat: checkpoints with a conversation each, a reward model that judges, and how that looks."""
# ruff: noqa: T201 - a command prints

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from dataclasses import dataclass, field

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

Message = dict[str, str]
Pieces = Generator[str, None, None]

_COLUMNS_FROM_WIDTH = 100
_LINES_BESIDE_REPLIES = 4


@dataclass
class Speaker:
    """A checkpoint with its own conversation."""

    name: str
    answer: Callable[[Sequence[Message]], Pieces]
    """The reply to messages that end with the user's, in pieces as they are generated."""
    system_prompt: str | None = None
    turns: list[Message] = field(default_factory=list)
    """What was said, the user and the assistant in turn."""

    @property
    def messages(self) -> list[Message]:
        """The conversation with its system prompt, as the chat template takes it."""
        return self._instructed(self.turns)

    def begin(self, system_prompt: str | None) -> None:
        """Forget what was said and go by that system prompt."""
        self.system_prompt, self.turns = system_prompt, []

    def reply(self, text: str) -> Pieces:
        """Answer a message. A reply that is cut short stays as far as it got; a message without any is forgotten."""
        asked = [*self.turns, {"role": "user", "content": text}]
        said: list[str] = []
        try:
            with closing(self.answer(self._instructed(asked))) as pieces:
                for piece in pieces:
                    said.append(piece)
                    yield piece
        finally:
            if said:
                self.turns = [*asked, {"role": "assistant", "content": "".join(said)}]

    def _instructed(self, turns: list[Message]) -> list[Message]:
        return [{"role": "system", "content": self.system_prompt}, *turns] if self.system_prompt else turns


@dataclass(frozen=True)
class Judge:
    """A reward model that scores replies."""

    name: str
    score: Callable[[Sequence[Message]], float]
    """The score of a conversation that ends with the assistant's turn."""


@dataclass(frozen=True)
class Chat:
    """One or two speakers, or a speaker and its judge, before a console."""

    console: Console
    speakers: Sequence[Speaker]
    judge: Judge | None = None

    def show(self, text: str, stoppable: Callable[[], AbstractContextManager[None]] = nullcontext) -> None:
        """Print the replies to a message as they come, side by side where there is room.

        Args:
            text: The message.
            stoppable: What a reply (both, where they are side by side) runs in; decides what an interrupt does.
        """
        if len(self.speakers) > 1 and self.console.is_terminal and self.console.width >= _COLUMNS_FROM_WIDTH:
            with stoppable():
                self._side_by_side(text)
            return
        for speaker in self.speakers:
            with stoppable():
                self._one(speaker, text)

    def replies(self, text: str) -> dict[str, str | float]:
        """The whole replies to a message, and the score of the judge, by name."""
        found: dict[str, str | float] = {speaker.name: "".join(speaker.reply(text)) for speaker in self.speakers}
        return found | ({self.judge.name: self.judge.score(self.speakers[0].messages)} if self.judge else {})

    def _one(self, speaker: Speaker, text: str) -> None:
        if len(self.speakers) > 1:
            self.console.print(f"{speaker.name}:", style="bold", markup=False, highlight=False)
        with closing(speaker.reply(text)) as pieces:
            for piece in pieces:
                print(self._shown(piece), end="", flush=True)
        print()
        if self.judge:
            line = f"{self.judge.name}: score {self.judge.score(speaker.messages):.4g}"
            self.console.print(line, style="dim", markup=False, highlight=False)

    def _side_by_side(self, text: str) -> None:
        said = [""] * len(self.speakers)
        most_lines = max(1, self.console.height - _LINES_BESIDE_REPLIES)
        try:
            with (
                ExitStack() as open_replies,
                Live(console=self.console, transient=True, get_renderable=lambda: self._columns(said, most_lines)),
            ):
                replies = [open_replies.enter_context(closing(speaker.reply(text))) for speaker in self.speakers]
                for index, piece in _in_turn(replies):
                    said[index] += self._shown(piece)
        finally:
            self.console.print(self._columns(said))

    def _columns(self, replies: Sequence[str], most_lines: int = 0) -> Table:
        """The replies under their names; the last lines only, where they must fit a screen."""
        table = Table.grid(expand=True, padding=(0, 2, 0, 0))
        for _ in self.speakers:
            table.add_column(ratio=1)
        width = self.console.width // len(self.speakers) - 2
        table.add_row(*(Text(speaker.name, style="bold") for speaker in self.speakers))
        table.add_row(*(Text("\n").join(Text(said).wrap(self.console, width)[-most_lines:]) for said in replies))
        return table

    def _shown(self, piece: str) -> str:
        """Text that cannot command the terminal."""
        if not self.console.is_terminal:
            return piece
        return "".join(letter if letter.isprintable() or letter in "\n\t" else "\ufffd" for letter in piece)


def _in_turn(replies: Sequence[Iterator[str]]) -> Iterator[tuple[int, str]]:
    """The pieces of several replies with the reply's number: one of each in turn, as long as it goes on."""
    going_on = dict(enumerate(replies))
    while going_on:
        for index, reply in list(going_on.items()):
            piece = next(reply, None)
            if piece is None:
                del going_on[index]
            else:
                yield index, piece
