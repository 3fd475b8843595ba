"""The command line of `align`: commands, their arguments and their help."""

from argparse import ArgumentParser, ArgumentTypeError, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable
from pathlib import Path
from typing import get_args

from flows.data import add_data
from models.aliases import CHAMPION
from models.artifacts import TrainingStage
from models.publishing import Dtype, Weights
from models.retraining import Promotion
from settings.recipes import FlagParser, RecipeFlags, shipped_recipes

_DESCRIPTION = """\
Align a language model: supervised fine-tuning, reward model and DPO, then GRPO, from one recipe.

A finished stage is never trained twice: run the same recipe again and only what is missing or changed is trained.
Artifacts lie in ./artifacts, or where ALIGN_HOME says. Exit code 0: done; 1: the run failed; 2: the input is wrong
and nothing was written; 130: interrupted."""
_RECIPE_DESCRIPTION = """\
{purpose}

RECIPE is a YAML file or one of the shipped recipes: {shipped}.
Flags change single values of the recipe; `null` removes an optional part:

  align {command} quickstart --sft.learning_rate 1e-4 --sft.lora.r 4 --dpo null --seed 3

Relative paths in a recipe start at its file, those in flags at the working directory. ALIGN_DEVICE, ALIGN_THREADS and
other ALIGN_… variables say how, not what, to train."""
_PURPOSES = {
    "run": "Train what a recipe asks for.",
    "check": "Check a recipe, its data and this machine without training; say what is there already.",
    "data": "Say what a file would be for each stage: how it is read, which rows are unfit, how long they are.",
    "retrain": "Train and judge what has changed since a recipe's last run, and promote it if its gate is open.",
    "resume": "Go on with a run that did not complete: what is finished is taken, an interrupted stage goes on.",
    "runs": "List the runs, newest first.",
    "queue": "Show who computes on this machine, who waits for it and for how long, over all artifact roots.",
    "join": "Train with the run of another machine, as one of several (ALIGN_MACHINES), until it is told to stop.",
    "lineage": "Show what a folder is made of, down to base model and datasets, or what was made from it.",
    "diff": "Show what differs between two checkpoints: recipe, data, code, versions, machine and figures.",
    "compare": "Hold two models against each other on the same held-out rows, and write a page about it.",
    "verify": "Read every file again and compare it with its manifest's digest, or an exported folder's with its own.",
    "chat": "Talk to a checkpoint, or to two of them side by side.",
    "reproduce": "Train a checkpoint again from its manifest alone, and say whether the weights are the same.",
    "promote": "Point an alias to a checkpoint, once every byte of that has been verified, or back.",
    "aliases": "List the aliases with their history.",
    "prune": "Say what nobody needs any more and what space that takes; with --yes, remove it.",
    "import": "Take in a finished folder that was copied from another machine or artifact root.",
    "export": "Write a checkpoint as a folder for others, with model card, bill of materials and digests.",
    "forget": "Forget which micro-batches fitted into memory: the next runs try the largest ones again.",
    "up": "Start the Prefect server and a worker, deploy the flows, and set up crash detection and notifications.",
    "down": "Stop the worker, whose runs save first, and the server.",
    "doctor": "Look at server, worker, deployments, disk, device and libraries, and say what to do.",
}

_WITH_JSON = (
    "check", "data", "runs", "queue", "diff", "compare", "verify", "reproduce", "aliases", "prune", "import", "export",
    "doctor",
)  # fmt: skip


def parse_arguments(argv: list[str]) -> Namespace:
    """Parse a command line; `command` names the command, `flags` reads the recipe's flags where it has them.

    Raises:
        InputError: a command, flag or value is wrong.
        SystemExit: help was asked for and printed.
    """
    layout = RawDescriptionHelpFormatter
    parser = FlagParser(prog="align", description=_DESCRIPTION, formatter_class=layout, allow_abbrev=False)
    group = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, dest="command")
    commands: dict[str, FlagParser] = {
        name: group.add_parser(name, help=purpose, description=purpose, formatter_class=layout, allow_abbrev=False)
        for name, purpose in _PURPOSES.items()
    }
    for name in _WITH_JSON:
        commands[name].add_argument("--json", action="store_true", help="print JSON instead of a table")
    for name in {"run", "check", "retrain"} & set(argv):  # a hundred flags each: only where they are asked for
        _add_recipe(commands[name], name)
    if "run" in argv:
        _add_force(commands["run"])
    for name in ("chat", "reproduce", "export"):
        commands[name].add_argument(
            "checkpoint", metavar="CHECKPOINT", help="an alias, a folder, or the beginning of a name"
        )
    for name, add in _ARGUMENTS.items():
        add(commands[name])
    parsed, extras = parser.parse_known_args(argv)
    commands[parsed.command].refuse_unknown(extras)
    return parsed


def _add_recipe(command: ArgumentParser, name: str) -> None:
    shipped = ", ".join(shipped_recipes()) or "none"
    command.usage = f"align {name} RECIPE [flags]"
    command.description = _RECIPE_DESCRIPTION.format(purpose=_PURPOSES[name], command=name, shipped=shipped)
    command.add_argument("recipe", metavar="RECIPE", help="YAML file or name of a shipped recipe")
    command.set_defaults(flags=RecipeFlags(command))


def _add_force(command: ArgumentParser) -> None:
    choices = get_args(TrainingStage)
    command.add_argument(
        "--force", metavar="STAGE", action="append", default=[], choices=choices,
        help=f"train a stage again although it is there ({', '.join(choices)}); can be repeated",
    )  # fmt: skip


def _add_check(command: ArgumentParser) -> None:
    command.add_argument(
        "--offline", action="store_true", help="ask no hub; what cannot be known without it is said, not checked"
    )
    command.add_argument(
        "--card", metavar="NAME", default="",
        help="plan for an accelerator that is not here: t4, l4, rtx4090, a100-80gb, h100, or a size such as 24gb",
    )  # fmt: skip


def _add_retrain(command: ArgumentParser) -> None:
    command.add_argument(
        "--promotion", choices=get_args(Promotion), default="never",
        help="what becomes of a policy whose gate is open: promote it, ask a person, or nothing (default: never)",
    )  # fmt: skip
    command.add_argument("--alias", metavar="NAME", default=CHAMPION, help=f"what to replace (default: {CHAMPION})")


def _add_resume(command: ArgumentParser) -> None:
    command.add_argument(
        "run",
        metavar="RUN",
        nargs="?",
        help="beginning or end of a run's name; default: the newest that did not complete",
    )


def _add_verify(command: ArgumentParser) -> None:
    command.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        nargs="?",
        help="verify it and its ancestors only, or an exported folder; default: every artifact",
    )
    command.add_argument("--key", metavar="FILE", help="public key that an exported folder was signed for")


def _add_diff(command: ArgumentParser) -> None:
    command.add_argument("a", metavar="A", help="a checkpoint, as for the other commands")
    command.add_argument("b", metavar="B", help="the one to compare it with")


def _add_compare(command: ArgumentParser) -> None:
    command.add_argument("a", metavar="A", help="a checkpoint, as for the other commands, or a run: its last policy")
    command.add_argument("b", metavar="B", help="the one to hold against it")
    command.add_argument(
        "--recipe", help="what to measure on which rows; default: as the newest run that made one of the two"
    )
    command.add_argument("--html", metavar="FILE", type=Path, help="the page (default: in the artifact root)")


def _add_lineage(command: ArgumentParser) -> None:
    command.add_argument(
        "folder", metavar="FOLDER", help="an alias, a folder or the beginning of a name: model, dataset or evaluation"
    )
    command.add_argument("--descendants", action="store_true", help="show what was made from it instead")
    form = command.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print the graph as JSON")
    form.add_argument("--dot", action="store_true", help="print the graph for Graphviz")
    form.add_argument("--mermaid", action="store_true", help="print the graph for Mermaid")
    form.add_argument("--html", metavar="FILE", help="write a page with the graph, where every node opens its card")


def _add_chat(command: ArgumentParser) -> None:
    command.add_argument(
        "other", metavar="OTHER", nargs="?",
        help="a second checkpoint that gets the same messages; a reward model scores the first one's replies",
    )  # fmt: skip
    command.add_argument("--prompt", help="print the reply to this text and end; default: a conversation")
    command.add_argument("--json", action="store_true", help="with --prompt: print the replies by name as JSON")
    command.add_argument("--max_new_tokens", type=_positive, default=256, help="a reply stops here (default: 256)")
    command.add_argument("--temperature", type=_temperature, default=0.0, help="0: the most likely reply (default: 0)")


def _add_promote(command: ArgumentParser) -> None:
    command.add_argument("checkpoint", metavar="CHECKPOINT", nargs="?", help="what the alias shall point to")
    command.add_argument("--alias", metavar="NAME", default=CHAMPION, help=f"the alias (default: {CHAMPION})")
    command.add_argument("--rollback", action="store_true", help="go back to what the alias pointed to before")
    command.add_argument("--despite-gate", action="store_true", help="promote what its run's gate has not let pass")
    command.add_argument("--reason", metavar="TEXT", default="", help="why, for the alias's history")
    command.add_argument("--by", metavar="NAME", help="who does it, for the history (default: ALIGN_PROMOTED_BY)")


def _add_prune(command: ArgumentParser) -> None:
    command.add_argument("--yes", action="store_true", help="remove it; default: only say what would be removed")
    command.add_argument(
        "--keep", metavar="N", type=_count, default=3, help="keep the checkpoints of the newest N runs (default: 3)"
    )
    command.add_argument(
        "--older-than", metavar="DAYS", type=_days, default=7.0, dest="older_than_days",
        help="unfinished, damaged and replaced folders go after so many days (default: 7)",
    )  # fmt: skip
    command.add_argument(
        "--drop-merged", action="store_true",
        help="also remove merged weights of what is kept, where adapter and parent give the very same bytes again",
    )  # fmt: skip


def _add_import(command: ArgumentParser) -> None:
    command.add_argument("folder", metavar="DIR", help="a folder with a manifest.json")
    command.add_argument(
        "--ancestors", action="store_true", help="take those of its ancestors, too, that lie beside it in its root"
    )


def _add_export(command: ArgumentParser) -> None:
    command.add_argument("folder", metavar="DIR", help="folder to write; must not exist, or be empty")
    command.add_argument(
        "--weights",
        choices=get_args(Weights),
        default="merged",
        help="the whole model, the last stage's adapter alone, or one GGUF file (default: merged)",
    )
    command.add_argument("--dtype", choices=get_args(Dtype), help="number format of the weights; default: as published")
    command.add_argument("--sign", metavar="KEY", help="sign the folder with this private elliptic-curve key (PEM)")
    command.add_argument(
        "--push", metavar="REPO", help="upload the folder to this hub repository, private if it is new"
    )
    command.add_argument("--public", action="store_true", help="let everybody see the repository of --push")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"'{text}' is not a whole number of 1 or more")
    return int(text)


def _count(text: str) -> int:
    if not text.isdecimal():
        raise ArgumentTypeError(f"'{text}' is not a whole number of 0 or more")
    return int(text)


def _days(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise ArgumentTypeError(f"'{text}' is not a number of days of 0 or more")
    return value


def _temperature(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 100:  # a text that is no number, a negative one, nan
        raise ArgumentTypeError(f"'{text}' is not a number from 0 to 100")
    return value


_ARGUMENTS: dict[str, Callable[[ArgumentParser], None]] = {
    "check": _add_check,
    "data": add_data,
    "retrain": _add_retrain,
    "resume": _add_resume,
    "lineage": _add_lineage,
    "diff": _add_diff,
    "compare": _add_compare,
    "verify": _add_verify,
    "chat": _add_chat,
    "promote": _add_promote,
    "prune": _add_prune,
    "import": _add_import,
    "export": _add_export,
}
