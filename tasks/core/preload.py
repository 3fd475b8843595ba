"""Imports that every training process needs, done once in the fork server and shared by all its children.

Nothing here may start a thread, run a kernel or touch an accelerator: a forked child could not go on from that.
"""

import gc
import logging
import os
import signal

from tasks.closing import SIGNALS

gc.disable()  # what is imported stays: looking through it for garbage takes half a second each time
SERVER = os.getpid()
"""The process that imports this, whose children the training processes are."""
# A signal to the whole process group is the flow's to answer: were the server to end, its children would die unsaved.
for number in SIGNALS:
    signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # blocked since its start
# Asks for an optional package of kernels that nothing here needs.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "warning")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import torch

compile_function = torch.compile
# bitsandbytes has fallbacks compiled that hardly a device uses; with the compiler's import each start took 0.75 s more.
torch.compile = lambda function, **_: function  # type: ignore[assignment]
import bitsandbytes

torch.compile = compile_function
import peft
import transformers.models.auto.modeling_auto
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, Trainer
from transformers.conversion_mapping import get_checkpoint_conversion_mapping
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

import tasks.child_main
from tasks.core import conversion, dpo, entry, evaluation, grpo, reward, sft

get_checkpoint_conversion_mapping("")  # compiles a thousand patterns, once
gc.freeze()
