"""Shapes of published models, so that memory can be estimated where neither the hub nor the model is at hand.

Each is the part of the model's `config.json` that decides how large it is, as its maker publishes it on the hub.
"""

from typing import Any

from models.contract import Contract


class PublishedModel(Contract):
    """A model on the hub, as far as it decides memory."""

    parameters: int
    """Number of weights, shared ones counted once."""
    architecture: dict[str, Any]
    """Arguments of Transformers' configuration, `model_type` among them."""

    @property
    def context_tokens(self) -> int:
        """Longest sequence that it was made for."""
        return int(self.architecture["max_position_embeddings"])


def _qwen2(parameters: int, layers: int, hidden: int, mlp: int, heads: tuple[int, int], **other: Any) -> PublishedModel:
    shape = {"num_hidden_layers": layers, "hidden_size": hidden, "intermediate_size": mlp}
    attention = {"num_attention_heads": heads[0], "num_key_value_heads": heads[1], "max_position_embeddings": 32_768}
    return PublishedModel(parameters=parameters, architecture={"model_type": "qwen2"} | shape | attention | other)


def _llama(parameters: int, layers: int, hidden: int, mlp: int, heads: tuple[int, int]) -> PublishedModel:
    shape = {"num_hidden_layers": layers, "hidden_size": hidden, "intermediate_size": mlp, "vocab_size": 128_256}
    attention = {"num_attention_heads": heads[0], "num_key_value_heads": heads[1], "max_position_embeddings": 131_072}
    other = {"tie_word_embeddings": False}
    return PublishedModel(parameters=parameters, architecture={"model_type": "llama"} | shape | attention | other)


PUBLISHED: dict[str, PublishedModel] = {
    "Qwen/Qwen2.5-0.5B-Instruct": _qwen2(
        494_032_768, 24, 896, 4_864, (14, 2), vocab_size=151_936, tie_word_embeddings=True
    ),
    "Qwen/Qwen2.5-7B-Instruct": _qwen2(
        7_615_616_512, 28, 3_584, 18_944, (28, 4), vocab_size=152_064, tie_word_embeddings=False
    ),
    "meta-llama/Llama-3.1-70B-Instruct": _llama(70_553_706_496, 80, 8_192, 28_672, (64, 8)),
    "meta-llama/Llama-3.1-405B-Instruct": _llama(405_853_388_800, 126, 16_384, 53_248, (128, 8)),
}
"""By hub id; the shipped recipes' models, and two large ones for what-if questions."""
