"""Whom `align compare` holds against whom, and what it refuses."""

import pytest

from flows.__main__ import main
from tasks.store import ArtifactStore
from tests.folders import name_of


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("sft", "sft"), f"'sft' and 'sft' are both {name_of('sft')}; name two models"),
        (("sft", "reward"), "is a reward model, which writes no replies; compare policies"),
        (("sft", "nothing"), "'nothing' matches nothing"),
        (("sft", "dpo"), "say what to measure with --recipe"),
        (("sft", "dpo", "--recipe", "no.yaml"), "no such recipe file"),
    ],
)
def test_what_cannot_be_compared(
    store: ArtifactStore, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], said: str
) -> None:
    assert main(["compare", *words]) == 2
    message = capsys.readouterr()
    assert message.out == ""
    assert said in message.err
    assert not (store.home / "comparisons").exists()
