"""Real files, which not every machine has."""

from typing import Any

REAL: dict[str, tuple[Any, Any, Any]] = {
    "anthropic_evals/persona_agreeableness.jsonl": (
        "no format known",
        "can be read in 2 ways",
        ("question_answer", 1000),
    ),
    "axolotl_fixtures/alpaca.json": (("alpaca", 2), "no format known", ("alpaca", 2)),
    "axolotl_fixtures/conversation.json": (("sharegpt", 1), "no format known", ("sharegpt", 1)),
    "axolotl_fixtures/conversation.missingturns.json": ("text is empty", "no format known", "text is empty"),
    "gsm8k/example_model_solutions.jsonl": ("no format known", "no format known", ("question_answer", 1319)),
    "gsm8k/train.jsonl": (("question_answer", 7473), "no format known", ("gsm8k", 7473)),
    "ifeval/input_data.jsonl": ("no format known", "no format known", ("standard", 541)),
    "llama_factory/dataset_info.json": ("the file is one object",) * 3,
    "llama_factory/dpo_en_demo.json": ("last turn is the user's", ("sharegpt", 294), ("sharegpt", 294)),
    "llama_factory/glaive_toolcall_en_demo.json": (("sharegpt", 265), "no format known", ("sharegpt", 264)),
    "llama_factory/identity.json": (("alpaca", 91), "no format known", ("alpaca", 91)),
    "llama_factory/kto_en_demo.json": (("messages", 300), ("unpaired", 1), ("messages", 298)),
    "llama_factory/reason_tool_use_demo_50.jsonl": (("messages", 50), "no format known", ("messages", 50)),
    "llama_factory/v1_dpo_demo.jsonl": ("no format known", ("standard", 10), "no format known"),
    "llama_factory/v1_sft_demo.jsonl": (("messages", 499), "no format known", ("messages", 498)),
    "llm_foundry/simple_arithmetic_nospaces.jsonl": (
        ("question_answer", 998),
        "no format known",
        ("question_answer", 998),
    ),
    "mt_bench/dummy_conversation.json": (("sharegpt", 500), "no format known", ("sharegpt", 500)),
    "mt_bench/question.jsonl": ("no format known", "no format known", ("turns", 80)),
    "ollama_templates/templates.jsonl": ("no format known",) * 3,
    "open_instruct/rlvr_test.jsonl": ("last turn is the user's", "no format known", ("messages", 100)),
    "qwen_math_eval/addsub.jsonl": ("got 43.0", "no format known", ("question_answer", 395)),
    "qwen_math_eval/singleop.jsonl": ("got 14.0", "no format known", ("question_answer", 531)),
    "self_instruct/seed_tasks.jsonl": (("self_instruct", 175), "no format known", ("self_instruct", 175)),
    "torchtune_assets/chat_tiny.json": (("sharegpt", 1), "no format known", ("sharegpt", 1)),
    "torchtune_assets/hh_rlhf_tiny.json": ("no format known", ("standard", 1), "no format known"),
    "torchtune_assets/instruct_tiny.json": (("alpaca", 2), "no format known", ("alpaca", 2)),
    "torchtune_assets/stack_exchange_paired_tiny.json": (
        "no format known",
        ("question_answer", 25),
        ("question_answer", 25),
    ),
    "torchtune_assets/tiny_bpe_tokenizer.json": ("no format known",) * 3,
}
"""What a file is read as for sft, preference and prompts: format and rows kept, or a part of the reason why not."""
