"""A model as a GGUF file, the format of llama.cpp: Llama, Qwen2 and Qwen3 with a byte-level BPE tokenizer.

The layout is that of llama.cpp's own converter, whose package would overwrite the installed `gguf`: names of tensors
from that, rows of Llama's query and key matrices in the order of its rotary embedding, matrices in the wanted number
format, vectors in float32. What a short comparison of outputs would not show (scaled rotary embeddings, sliding
windows) is refused.
"""

import json
from pathlib import Path
from typing import Any

import gguf
import torch
from gguf import GGMLQuantizationType, LlamaFileType, TokenType
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

from models.artifacts import Precision
from models.errors import InputError

_ARCHITECTURES = {"llama": gguf.MODEL_ARCH.LLAMA, "qwen2": gguf.MODEL_ARCH.QWEN2, "qwen3": gguf.MODEL_ARCH.QWEN3}
_FILE_TYPES: dict[Precision, LlamaFileType] = {
    "fp32": LlamaFileType.ALL_F32,
    "fp16": LlamaFileType.MOSTLY_F16,
    "bf16": LlamaFileType.MOSTLY_BF16,
}
_SPLITS = {GGUF_PRE_TOKENIZER_SPLITS[name]: name for name in ("llama-bpe", "qwen2")}
"""Names of the ways to split a text before its merges, by their regular expression."""
_QWEN3_HEAD = 128
"""Transformers does not read the size of a Qwen3's heads from a GGUF file, but takes it for this."""
_REMEDY = "export with --weights merged, and convert that with llama.cpp's own converter"


def check_gguf(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Check that model and tokenizer are of a kind that can be written.

    Raises:
        InputError: they are not; the message says what it is.
    """
    if config.model_type not in _ARCHITECTURES:
        raise _cannot(f"a model of type {config.model_type}; written are {', '.join(_ARCHITECTURES)}")
    rope = config.rope_parameters.get("rope_type", "default")
    if rope != "default":
        raise _cannot(f"rotary embeddings scaled by {rope}")
    if any(kind != "full_attention" for kind in getattr(config, "layer_types", None) or ()):
        raise _cannot("attention in a sliding window")
    if config.hidden_act != "silu" or getattr(config, "mlp_bias", False) or getattr(config, "attention_bias", False):
        raise _cannot("layers with biases or another activation than SiLU")
    if config.model_type == "qwen3" and config.head_dim != _QWEN3_HEAD:
        raise _cannot(f"a Qwen3 with heads of {config.head_dim} (Transformers reads {_QWEN3_HEAD} only)")
    _pre_tokenizer(tokenizer)


def write_gguf(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, precision: Precision, file: Path) -> None:
    """Write the model to `file`, its matrices in that number format."""
    arch = _ARCHITECTURES[model.config.model_type]
    writer = gguf.GGUFWriter(file, gguf.MODEL_ARCH_NAMES[arch])
    writer.add_name(file.stem)
    writer.add_file_type(_FILE_TYPES[precision])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_shape(writer, model.config)
    _add_tokenizer(writer, tokenizer, model.config.vocab_size)
    names = gguf.get_tensor_name_map(arch, model.config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if not (name == "lm_head.weight" and model.config.tie_word_embeddings):
            known = names.get_name(name, try_suffixes=(".weight", ".bias"))
            if known is None:
                raise _cannot(f"the tensor {name}")
            _add_tensor(writer, known, tensor, precision, model.config)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _cannot(what: str) -> InputError:
    return InputError(f"--weights gguf: {what} cannot be written as GGUF here; {_REMEDY}")


def _add_shape(writer: gguf.GGUFWriter, config: PretrainedConfig) -> None:
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_rope_dimension_count(head_size)
    writer.add_key_length(head_size)
    writer.add_value_length(head_size)


def _add_tensor(
    writer: gguf.GGUFWriter, name: str, tensor: torch.Tensor, precision: Precision, config: PretrainedConfig
) -> None:
    """Add a weight under its GGUF name; `name` is the block's part of it, such as `blk.0.attn_q.weight`."""
    if config.model_type == "llama" and ".attn_q." in name:
        tensor = _by_rotary_pairs(tensor, config.num_attention_heads)
    if config.model_type == "llama" and ".attn_k." in name:
        tensor = _by_rotary_pairs(tensor, config.num_key_value_heads)
    values = tensor.float().contiguous().numpy()
    if tensor.ndim == 1 or precision == "fp32":
        writer.add_tensor(name, values)
    elif precision == "fp16":
        writer.add_tensor(name, values.astype("float16"))
    else:
        kind = GGMLQuantizationType.BF16
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)


def _by_rotary_pairs(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of a head as (first of each rotary pair, second of each) put into the order of the pairs."""
    return tensor.reshape(heads, 2, -1, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)


def _add_tokenizer(writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> None:
    """Vocabulary, merges, special tokens and chat template; rows of the embedding without a token get a name."""
    core = _core(tokenizer)
    texts = {index: text for text, index in tokenizer.get_vocab().items()}
    added = tokenizer.added_tokens_decoder
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_pre_tokenizer(tokenizer))
    writer.add_token_list([texts.get(index, f"[PAD{index}]") for index in range(vocab_size)])
    writer.add_token_types([_token_type(index, texts, added) for index in range(vocab_size)])
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in core["model"]["merges"]])
    for kind in ("bos", "eos", "unk", "pad"):
        index = getattr(tokenizer, f"{kind}_token_id")
        if index is not None:
            getattr(writer, f"add_{kind}_token_id")(index)
    tokens = tokenizer("a")["input_ids"]
    writer.add_add_bos_token(tokenizer.bos_token_id is not None and tokens[0] == tokenizer.bos_token_id)
    writer.add_add_eos_token(tokens[-1] == tokenizer.eos_token_id)
    writer.add_chat_template(tokenizer.get_chat_template())


def _token_type(index: int, texts: dict[int, str], added: dict[int, Any]) -> TokenType:
    if index not in texts:
        return TokenType.UNUSED
    if index in added:
        return TokenType.CONTROL if added[index].special else TokenType.USER_DEFINED
    return TokenType.NORMAL


def _pre_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """The name that llama.cpp gives to the way in which this tokenizer splits a text before its merges.

    Raises:
        InputError: it is none of the known ones, or no byte-level BPE with merges at all.
    """
    core = _core(tokenizer)
    if core["model"]["type"] != "BPE" or not core["model"]["merges"]:
        raise _cannot("a tokenizer that is not a byte-level BPE with merges")
    whole = core["pre_tokenizer"] or {"type": "none"}
    parts = whole["pretokenizers"] if whole["type"] == "Sequence" else [whole]
    kinds = [part["type"] for part in parts]
    if kinds == ["ByteLevel"] and parts[0]["use_regex"]:
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and parts[0]["individual_digits"]:
        return "smollm"
    if kinds == ["Split", "ByteLevel"] and parts[0]["pattern"].get("Regex") in _SPLITS:
        return _SPLITS[parts[0]["pattern"]["Regex"]]
    raise _cannot(f"a tokenizer that splits text by {' and '.join(kinds)} in a way unknown here")


def _core(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The tokenizer as its JSON says."""
    core: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    return core
