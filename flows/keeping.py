"""The commands that keep an artifact root: `align promote`, `aliases`, `prune` and `import`.

Heavy imports stay inside the functions.
"""
# ruff: noqa: T201 - a command prints

import sys
from argparse import Namespace
from pathlib import Path

from flows.reading import open_store, print_json
from models.errors import InputError


def promote(arguments: Namespace) -> int:
    """Point an alias to a checkpoint, or back to what it pointed to before."""
    from settings.settings import load_settings
    from tasks.promoting import promote as point_to
    from tasks.promoting import rollback

    store, alias = open_store(), arguments.alias
    by = load_settings().promoted_by if arguments.by is None else arguments.by
    told = {"by": by, "reason": arguments.reason, "command": "align promote" + " --rollback" * arguments.rollback}
    if bool(arguments.checkpoint) == arguments.rollback:
        raise InputError("align promote: give either a CHECKPOINT or --rollback, and not both")
    if arguments.rollback:
        now, changed = rollback(store, alias, _say, **told), True
    else:
        now, changed = point_to(store, arguments.checkpoint, alias, _say, **told)
    before = now.history[-1].previous
    said = f", before {before}" * bool(before) if changed else " already"
    print(f"{alias} -> {now.checkpoint}{said}")
    return 0


def aliases(arguments: Namespace) -> int:
    """List the aliases with their history."""
    from tasks.aliases import all_aliases

    found = all_aliases(open_store().home)
    if arguments.json:
        print_json([{"checkpoint": alias.checkpoint} | alias.model_dump(mode="json") for alias in found])
    else:
        from flows.keeping_tables import print_aliases
        from flows.terminal import make_console

        print_aliases(found, make_console())
    return 0


def import_(arguments: Namespace) -> int:
    """Take a finished folder of another artifact root in."""
    from tasks.importing import import_folder

    result = import_folder(open_store(), Path(arguments.folder), arguments.ancestors, _say, _say)
    if arguments.json:
        print_json(result.model_dump(mode="json"))
        return 0
    said = {
        "imported": "imported, every byte verified",
        "there": "there already; nothing done",
        "pruned": "left out: its files were pruned where it comes from",
    }
    for folder in result.folders:
        print(f"{folder.kind} {folder.name}: {said[folder.outcome]}")
    if result.missing:
        print(f"not in this artifact root, but told of by the manifest: {', '.join(result.missing)}")
    return 0


def _say(text: str) -> None:
    print(f"align: {text}", file=sys.stderr)
