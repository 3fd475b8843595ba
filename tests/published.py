"""A small artifact root to publish from, made in a second without training: real models, adapters and figures."""

import json
from pathlib import Path
from typing import Any

from models.artifacts import Manifest
from models.evaluation import Estimate
from models.fingerprint import ID_LENGTH, fingerprint
from models.recipe import DPO, SFT, RewardModel
from models.sources import DatasetSource
from tasks.store import ArtifactStore
from tests.tiny import CHAT_TEMPLATE, write_rows

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
HUB_ORIGIN = {"source": "hub", "name": "somebody/small-model", "license": "apache-2.0", "commit": "c" * 40}
FOLDER_ORIGIN = {"source": "folder", "name": "small-model", "license": "apache-2.0", "config.json": "a" * 64}
SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}


def build_tokenizer(pre_tokenizer: Any = None) -> Any:
    """A byte-level BPE that has learnt a few merges."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizer or pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=280, special_tokens=SPECIAL, initial_alphabet=alphabet)
    core.train_from_iterator(["the user says that the answer is what the assistant returns"] * 20, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|im_end|>", bos_token="<|im_start|>", pad_token="<|endoftext|>"
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def build_model(kind: str = "llama", *, tied: bool = True, dtype: str = "float32", **shape: Any) -> Any:
    """A model of two layers with random weights, its norms and biases as well."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "vocab_size": 280}
    config = AutoConfig.for_model(kind, **SHAPE | tokens | {"tie_word_embeddings": tied} | shape)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.to(getattr(torch, dtype))


def _write_placeholders(content: Path, *, adapter: bool) -> None:
    """The files of a checkpoint; only the adapter's weights are such that a library would read them."""
    if adapter:
        import numpy as np
        from safetensors.numpy import save_file

        (content / "adapter").mkdir()
        (content / "adapter" / "adapter_config.json").write_text('{"base_model_name_or_path": "sft-0", "r": 8}')
        save_file({"lora_A": np.zeros((2, 2), "float32")}, content / "adapter" / "adapter_model.safetensors")
    (content / "config.json").write_text('{"model_type": "llama"}')
    (content / "tokenizer.json").write_text("{}")
    (content / "model.safetensors").write_bytes(bytes(range(250)))


class Shelf:
    """An artifact root with a base model, SFT, reward model and DPO checkpoint, their data and one evaluation."""

    def __init__(
        self,
        home: Path,
        origin: dict[str, Any] | None = None,
        licenses: dict[str, str] | None = None,
        *,
        real: bool = True,
    ) -> None:
        self.store = ArtifactStore(home)
        self.real = real
        self.origin = origin or FOLDER_ORIGIN
        self.licenses = {"sft": "cc-by-4.0", "preferences": "mit", "heldout": "mit"} | (licenses or {})
        self.datasets = {name: self._dataset(name) for name in ("sft", "preferences", "heldout")}
        self.base = self._base()
        self.sft = self._trained("sft", self.base)
        self.reward = self._trained("reward", self.sft)
        self.dpo = self._trained("dpo", self.sft)
        self.evaluation = self._evaluation(self.dpo)

    def path(self, name: str) -> Path:
        """The finished folder of that name."""
        path = self.store.locate(name)
        assert path
        return path

    def _publish(self, kind: str, content: Path, identity: dict[str, Any], **manifest: Any) -> str:
        digest = fingerprint(identity)
        stage = f"{identity['stage']}-" if kind == "checkpoint" else ""
        manifest |= {"name": stage + digest[:ID_LENGTH], "kind": kind, "fingerprint": digest, "identity": identity}
        manifest["code"] = {"alignment-pipeline": "0.1.0", "commit": "d" * 40, "changed": "false"}
        self.store.publish(content, versions={"torch": "2.13.0", "trl": "1.16.0"}, **manifest)
        return str(stage + digest[:ID_LENGTH])

    def _content(self, name: str) -> Path:
        content = self.store.home / ".making" / name
        content.mkdir(parents=True)
        return content

    def _manifest(self, name: str) -> Manifest:
        return Manifest.model_validate_json((self.path(name) / "manifest.json").read_bytes())

    def _dataset(self, name: str) -> str:
        content = self._content(name)
        rows = [{"prompt": f"{name} {number}", "answer": number} for number in range(7)]
        write_rows(content / "rows.jsonl", rows)
        source = DatasetSource(path=f"{name}.jsonl").model_dump(mode="json")
        digest = {f"{name}.jsonl": fingerprint(name)}
        origin = source | {"files": digest, "rules": {"duplicates_dropped": 2, "system_prompt": None}}
        return self._publish(
            "dataset", content, {"rows_sha256": fingerprint(rows)}, origin=origin, metrics={"rows": 7.0}
        )

    def _base(self) -> str:
        content = self._content("base")
        if self.real:
            build_model().save_pretrained(content)
            build_tokenizer().save_pretrained(content)
        else:
            _write_placeholders(content, adapter=False)
        identity = {"stage": "base", "origin": self.origin, "precision": "fp32"}
        return self._publish("base", content, identity, origin=self.origin)

    def _trained(self, stage: str, parent: str) -> str:
        content = self._content(stage)
        data = "sft" if stage == "sft" else "preferences"
        if self.real:
            self._write_weights(stage, parent, content)
        else:
            _write_placeholders(content, adapter=True)
        (content / "history.jsonl").write_text('{"loss": 1.0}\n')
        (content / "alarms.json").write_text("[]\n")
        source = DatasetSource(path=f"{data}.jsonl", license=self.licenses[data] or None)
        kind: Any = {"sft": SFT, "reward": RewardModel, "dpo": DPO}[stage]
        parents = {"policy": parent, "dataset": self.datasets[data]}
        identity = {
            "stage": stage,
            "hyperparameters": kind(dataset=source).model_dump(mode="json", exclude={"dataset"}),
            "parents": {role: self._manifest(name).fingerprint for role, name in parents.items()},
            "seed": 1,
            "precision": "fp32",
        }
        origin = {"system_prompt": "Be brief.", "dataset": source.model_dump(mode="json")}
        return self._publish("checkpoint", content, identity, parents=parents, origin=origin)

    def _write_weights(self, stage: str, parent: str, content: Path) -> None:
        """Put a random adapter, and for a reward model a random head, on the parent: with them, and merged."""
        import torch
        from peft import get_peft_model
        from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

        from models.recipe import LoRA
        from tasks.core.lora import lora_config

        is_scorer = stage == "reward"
        kind = AutoModelForSequenceClassification if is_scorer else AutoModelForCausalLM
        torch.manual_seed(len(stage))
        model = kind.from_pretrained(self.path(parent), **({"num_labels": 1} if is_scorer else {}))
        adapted = get_peft_model(model, lora_config(LoRA(), "SEQ_CLS" if is_scorer else "CAUSAL_LM"))
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.1)
        adapted.save_pretrained(content / "adapter")
        config = content / "adapter" / "adapter_config.json"
        named = parent if parent.startswith("sft") else f"base-{parent}"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": named}))
        (content / "adapter" / "README.md").unlink()
        adapted.merge_and_unload().save_pretrained(content)
        AutoTokenizer.from_pretrained(self.path(parent)).save_pretrained(content)

    def _evaluation(self, checkpoint: str) -> str:
        content = self._content("evaluation")
        figures = {
            "exact_match": Estimate(value=0.5, low=0.25, high=0.75, n=16),
            "preference_accuracy": Estimate(value=0.875, low=0.625, high=0.9375, n=16),
        }
        result: dict[str, Any] = {name: figure.model_dump() for name, figure in figures.items()}
        result["exact_match_by_kind"] = {"sum": figures["exact_match"].model_dump()}
        (content / "result.json").write_text(json.dumps(result | {"samples": [], "seconds": 1.0}))
        parents = {"checkpoint": checkpoint, "prompts": self.datasets["heldout"]}
        identity = {"stage": "evaluation", "parents": parents}
        return self._publish("evaluation", content, identity, parents=parents)
