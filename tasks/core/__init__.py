"""What runs in the training process: torch, Transformers, TRL and PEFT; no Prefect."""
