"""Computing once what rows of a micro-batch begin with: the prompt of several completions, or a system prompt.

TRL puts the prompt into the row of each completion. Here the forward pass of the model's backbone packs the rows
(`tasks.core.prefix_tree`), runs once, and hands back the states in the order that was asked for, so losses and metrics
stay TRL's own; policy, earlier policy and reference all pass through here. States, gradients and so weights are the
same up to rounding. With dropout they would not be, since a prompt would have one draw of it, not one a completion:
there TRL's way is kept.

A mask says for each token what it attends to (`tasks.core.packed_attention`), sliding windows included. Attention
without such masks (FlashAttention) and layers of other kinds stay with TRL's way.

The scores of tokens are taken from the states of completions alone, where TRL on a CPU takes them of prompts as well.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from types import MethodType
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from peft import PeftModel
from transformers import PreTrainedModel

from tasks.core.memory import is_out_of_memory
from tasks.core.packed_attention import TOLERANCE, PackedAttention
from tasks.core.prefix_tree import Packing, pack


def share_prompts(*models: torch.nn.Module | None) -> None:
    """Have models compute once what rows of a micro-batch have in common at their beginnings.

    It changes their forward pass, as TRL does for scores, where no cache is asked for: generation stays as it is. Two
    rows that part midway go through a model in both ways first. Where the states differ by more than rounding explains,
    or the model does not take such rows, TRL's way is kept and the log says so.

    Args:
        models: As a trainer holds them: the policy with its adapter, or the model and the reference that is its copy,
            where there is one; or models that are not trained.
    """
    for model in models:
        if model is None:
            continue
        plain = extract_model_from_parallel(model)
        base = plain.get_base_model() if isinstance(plain, PeftModel) else plain
        backbone = _Backbone(base.base_model)
        if base.get_output_embeddings() is not None:
            _score_completions_alone(base, backbone)


class _Backbone:
    """The forward pass of a model without its head, put in the place of its own."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._own = model.forward
        self._hidden_size = model.config.get_text_config().hidden_size
        self._attention = PackedAttention(model)
        self._drops_out = _drops_out(model)
        self._told_dropout = False
        self._shares: bool | None = None
        self._wanted: torch.Tensor | None = None

        @wraps(getattr(model.forward, "__func__", model.forward))
        def forward(_: PreTrainedModel, *arguments: Any, **options: Any) -> Any:
            return self._selected(self._forward(*arguments, **options))

        model.forward = MethodType(forward, model)

    @contextmanager
    def handing_back(self, wanted: torch.Tensor) -> Iterator[None]:
        """Within it, states are those of the wanted tokens alone.

        Args:
            wanted: (batch, tokens) of booleans; the states are (1, wanted tokens, hidden).
        """
        self._wanted = wanted
        try:
            yield
        finally:
            self._wanted = None

    def _selected(self, outputs: Any) -> Any:
        if self._wanted is not None:
            outputs.last_hidden_state = outputs.last_hidden_state[self._wanted].unsqueeze(0)
        return outputs

    def _forward(self, input_ids: Any = None, *arguments: Any, **options: Any) -> Any:
        asked = {name for name, value in options.items() if value is not None and value is not False}
        plain = not arguments and asked - {"return_dict"} == {"attention_mask"} and options["attention_mask"].ndim == 2
        without_cache = options.get("use_cache") is False  # as in training; generation has one
        packing = self._packing(input_ids, options["attention_mask"]) if plain and without_cache else None
        return self._run(packing) if packing else self._own(input_ids, *arguments, **options)

    def _packing(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Packing | None:
        """The packed rows, where they pay and the model takes them."""
        if self._model.training and self._drops_out:
            self._tell_of_dropout()
            return None
        if self._shares is None and attention_mask.sum(1).min() > 1:  # else no row parts midway
            self._shares = self._agrees(input_ids, attention_mask)
        return pack(input_ids, attention_mask, self._hidden_size) if self._shares else None

    def _tell_of_dropout(self) -> None:
        if not self._told_dropout:
            _refuse("it trains with dropout, which is drawn for each row")
        self._told_dropout = True

    def _run(self, packing: Packing) -> Any:
        outputs = self._own(
            input_ids=packing.input_ids,
            attention_mask=self._attention.masks(packing),
            position_ids=packing.position_ids,
            use_cache=False,
        )
        outputs.last_hidden_state = packing.unpack(outputs.last_hidden_state)
        return outputs

    def _agrees(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> bool:
        """Whether the model gives the same states in both ways.

        Where several processes hold a shard each, both passes take place in all of them.
        """
        refusal = self._attention.refusal()
        if refusal:
            return _refuse(refusal)
        self._attention.try_blocks(self._dtype())
        input_ids, attention_mask = self._forked(input_ids, attention_mask)
        packing = pack(input_ids, attention_mask, self._hidden_size, always=True)
        if packing is None:
            return _refuse("its rows are padded amid their tokens")
        real = attention_mask.bool()
        with torch.no_grad():
            own = self._own(input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state[real].float()
            try:
                ours = self._run(packing).last_hidden_state[real].float()
            except Exception as error:
                if is_out_of_memory(error):
                    raise
                return _refuse(f"it takes no packed rows ({type(error).__name__}: {error})")
        off = float(((ours - own).norm(dim=-1) / own.norm(dim=-1)).max())
        allowed = TOLERANCE[self._dtype()]
        return off <= allowed or _refuse(f"its states would be off by {off:.2g}, allowed {allowed:.2g}")

    def _forked(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The row of a batch with most padding, and one that goes on with other tokens from its middle.

        One more place is padded before them: a model that counts it in positions differs at once, and not first in a
        later batch.
        """
        row = int(attention_mask.sum(1).argmin())
        ids, mask = (torch.nn.functional.pad(each[row], (1, 0)) for each in (input_ids, attention_mask))
        places = mask.nonzero().squeeze(1)
        latter = places[len(places) // 2 :]
        other = ids.index_copy(0, latter, (ids[latter] + 1) % self._model.get_input_embeddings().num_embeddings)
        return torch.stack([ids, other]), torch.stack([mask, mask])

    def _dtype(self) -> torch.dtype:
        """The number format that the model computes in."""
        device = self._model.device.type
        if torch.is_autocast_enabled(device):
            return torch.get_autocast_dtype(device)
        dtype: torch.dtype = self._model.get_input_embeddings().weight.dtype
        return dtype


def _drops_out(model: PreTrainedModel) -> bool:
    """Whether the model, or an adapter of it, draws random numbers in training: as a module, or as its settings say."""
    own = any(isinstance(module, torch.nn.Dropout) and module.p > 0 for module in model.modules())
    told = model.config.get_text_config().to_dict()
    return own or any("drop" in name and isinstance(rate, float) and rate > 0 for name, rate in told.items())


def _refuse(reason: str) -> bool:
    print(f"prompts are not shared, each row is computed in full: {reason}")  # noqa: T201
    return False


def _score_completions_alone(model: PreTrainedModel, backbone: _Backbone) -> None:
    """Have TRL's fused head score labelled tokens alone; on a CPU it scores all and forgets those without label."""
    own = model.forward

    @wraps(getattr(own, "__func__", own))
    def forward(_: PreTrainedModel, *arguments: Any, labels: Any = None, **options: Any) -> Any:
        scored = labels[:, 1:] != -100 if options.get("fused_lm_head") and labels is not None else None
        if scored is None or not scored.any():
            return own(*arguments, labels=labels, **options)
        wanted = torch.nn.functional.pad(scored, (0, 1))  # the state of a token scores the one after it
        with backbone.handing_back(wanted):
            outputs = own(*arguments, shift_labels=labels[:, 1:][scored].unsqueeze(0), **options)
        return _spread(outputs, scored)

    model.forward = MethodType(forward, model)


def _spread(outputs: Any, scored: torch.Tensor) -> Any:
    """Figures of the scored tokens, (1, scored tokens), put in their places among (batch, tokens - 1), with zeros."""
    for name in ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1", "label_mask"):
        figures = getattr(outputs, name)
        if figures is not None:
            setattr(outputs, name, figures.new_zeros(scored.shape).masked_scatter(scored, figures))
    return outputs
