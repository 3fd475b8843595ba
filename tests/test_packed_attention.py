"""FlexAttention over packed rows, as on an accelerator: what it computes is what a dense mask gives.

FlexAttention refuses backward passes on a CPU, for want of a compiled one; here that is lifted and it runs uncompiled.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.integrations.flex_attention import flex_attention_forward
from trl.trainer.utils import add_fused_lm_head

from tasks.core import packed_attention
from tasks.core.loading import load_tokenizer
from tasks.core.scoring import Dialog, reward_scores
from tests.test_shared_prompt import MODELS, RAGGED, assert_agree, build, shared, with_adapter

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:flex_attention called without:UserWarning"),
]


@pytest.fixture
def in_blocks(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Blocks on a CPU as well, however narrow the rows; the widths of the rows that went so."""
    widths = []

    def blocks(packing: Any, window: int | None) -> Any:
        widths.append(packing.input_ids.shape[1])
        return own(packing, window)

    own = packed_attention._blocks
    monkeypatch.setattr(packed_attention, "may_take_blocks", lambda _: True)
    monkeypatch.setattr(packed_attention, "_BLOCKS_FROM", 0)
    monkeypatch.setattr(packed_attention, "_blocks", blocks)
    monkeypatch.setattr(torch.nn.attention.flex_attention, "_validate_device", lambda *_: None)
    with torch.compiler.set_stance("force_eager"):
        yield widths


def with_figures(name: str) -> Any:
    """A model whose head gives log-probabilities and entropies."""
    model = build(name)
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    return model


@pytest.mark.parametrize("name", sorted(MODELS.keys() - {"Llama, eager"}))
@pytest.mark.parametrize("way", ["lora", "recomputed"])
def test_blocks_give_the_same(name: str, way: str, in_blocks: list[int], capsys: Any) -> None:
    def make() -> Any:
        model = with_figures(name)
        if way == "recomputed":
            model.activation_checkpointing_enable({"use_reentrant": False})
        return with_adapter(model).train()

    assert_agree(make, RAGGED, capsys)
    assert len(in_blocks) > 2


def test_blocks_serve_where_nothing_is_trained(in_blocks: list[int], tiny_model: Path, capsys: Any) -> None:
    dialogs = [Dialog(list(range(1, 20)) + reply, 19) for reply in ([9, 8, 7], [9, 8, 1, 2], [5])]
    tokenizer = load_tokenizer(tiny_model)
    scorer = build("Llama", "ForSequenceClassification", num_labels=1).eval()
    expected = reward_scores(scorer, tokenizer, dialogs)
    assert reward_scores(shared(scorer), tokenizer, dialogs) == pytest.approx(expected, abs=1e-5)
    assert len(in_blocks) > 1
    assert not capsys.readouterr().out


def test_narrow_rows_take_a_dense_mask(in_blocks: list[int], monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(packed_attention, "_BLOCKS_FROM", 512)
    assert_agree(lambda: with_figures("Llama"), RAGGED, capsys)
    assert in_blocks == [640]  # in the comparison before the first batch


def test_what_an_accelerator_cannot_do_in_blocks_goes_with_a_dense_mask(
    in_blocks: list[int], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def no_room(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no kernel fits into shared memory\nat length")

    monkeypatch.setattr(packed_attention, "flex_attention_forward", no_room)
    model = shared(build("Llama").eval())
    rows = {name: RAGGED[name] for name in ("input_ids", "attention_mask")}
    expected = build("Llama").eval()(**rows).logits
    ours = model(**rows, use_cache=False).logits
    real = rows["attention_mask"].bool()
    torch.testing.assert_close(ours[real], expected[real])
    assert capsys.readouterr().out == (
        "attention over packed rows takes a dense mask, not blocks: RuntimeError: no kernel fits into shared memory\n"
    )


def test_an_accelerator_that_computes_something_else_in_blocks_is_found_out(
    in_blocks: list[int], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def wrong(module: Any, query: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        return flex_attention_forward(module, query * 1.1, *arguments, **options)

    monkeypatch.setattr(packed_attention, "flex_attention_forward", wrong)
    model = shared(build("Llama").eval())
    model(**{name: RAGGED[name] for name in ("input_ids", "attention_mask")}, use_cache=False)
    assert "not blocks: off by" in capsys.readouterr().out
