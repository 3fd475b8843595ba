"""The commands that keep an artifact root: `align promote`, `aliases`, `prune` and `import`.

Heavy imports stay inside the functions.
"""
# ruff: noqa: T201 - a command prints

import sys
from argparse import Namespace
from pathlib import Path

from flows.reading import computing, make_whole, open_store, print_json
from models.errors import InputError


def promote(arguments: Namespace) -> int:
    """Point an alias to a checkpoint, or back to what it pointed to before."""
    from settings.settings import load_settings
    from tasks.finding import resolve
    from tasks.promoting import before, rollback
    from tasks.promoting import promote as point_to

    store, alias = open_store(), arguments.alias
    by = load_settings().promoted_by if arguments.by is None else arguments.by
    told = {"by": by, "reason": arguments.reason, "command": "align promote" + " --rollback" * arguments.rollback}
    if bool(arguments.checkpoint) == arguments.rollback:
        raise InputError("align promote: give either a CHECKPOINT or --rollback, and not both")
    if arguments.rollback:
        make_whole(store, resolve(store, before(store.home, alias).checkpoint)[0])
        now, changed = rollback(store, alias, _say, **told), True
    else:
        path = resolve(store, arguments.checkpoint)[0]
        make_whole(store, path)
        now, changed = point_to(store, path, alias, _say, arguments.despite_gate, **told)
    previous = now.history[-1].previous
    said = f", before {previous}" * bool(previous) if changed else " already"
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


def prune(arguments: Namespace) -> int:
    """Say what nobody needs any more, and with `--yes` remove it."""
    from tasks.pruning import carry_out, plan_prune

    store = open_store()
    plan = plan_prune(store, arguments.keep, arguments.older_than_days, arguments.drop_merged)
    freed = carry_out(store, plan, *computing(), _say) if arguments.yes else 0
    if arguments.json:
        print_json(plan.model_dump(mode="json") | {"frees_bytes": plan.frees_bytes, "freed_bytes": freed})
        return 0
    from flows.keeping_tables import print_plan
    from flows.terminal import make_console

    print_plan(plan, arguments.yes, make_console())
    told = f"{freed / 1e6:.1f} MB were freed" if arguments.yes else f"{plan.frees_bytes / 1e6:.1f} MB would be free"
    print(told + ("" if arguments.yes else "; nothing was removed, `align prune --yes` does it"))
    if store.remote:
        print(f"this is of {store.home} alone; nothing is removed in {store.remote.url} (docs/remote.md)")
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
