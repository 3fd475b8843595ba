"""The commands that say what a folder is made of and what differs: `align lineage` and `align diff`.

Heavy imports stay inside the functions.
"""
# ruff: noqa: T201 - a command prints

from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from flows.reading import open_store, print_json
from models.errors import InputError

if TYPE_CHECKING:
    from models.lineage import LineageGraph
    from tasks.store import ArtifactStore


def lineage(arguments: Namespace) -> int:
    """Show what a folder is made of, or what was made from it."""
    store = open_store()
    graph = _graph(store, arguments)
    if arguments.html:
        return _write_page(store, graph, Path(arguments.html))
    if arguments.json:
        print(graph.model_dump_json(indent=2))
    elif arguments.dot or arguments.mermaid:
        from tasks.lineage_text import to_dot, to_mermaid

        print(to_dot(graph) if arguments.dot else to_mermaid(graph))
    else:
        from flows.lineage_tables import print_lineage
        from flows.terminal import make_console

        print_lineage(graph, make_console())
    return 0


def diff(arguments: Namespace) -> int:
    """Show what differs between two checkpoints."""
    from tasks.differing import difference

    found = difference(open_store(), arguments.a, arguments.b)
    if arguments.json:
        print_json(found.model_dump(mode="json") | {"same": found.same})
    else:
        from flows.lineage_tables import print_difference
        from flows.terminal import make_console

        print_difference(found, make_console())
    return 0


def _graph(store: "ArtifactStore", arguments: Namespace) -> "LineageGraph":
    from tasks.lineage import descent, lineage_of

    return descent(store, arguments.folder) if arguments.descendants else lineage_of(store, arguments.folder)


def _write_page(store: "ArtifactStore", graph: "LineageGraph", file: Path) -> int:
    from tasks.files import replace_file
    from tasks.reporting.lineage_page import render_lineage

    page = render_lineage(store, graph)
    try:
        if file.is_dir():
            raise InputError(f"--html: {file} is a folder; give the name of a file")
        replace_file(file, page)
    except OSError as error:
        remedy = "give a file in a folder that can be written"
        raise InputError(f"--html: {file} cannot be written ({error.strerror}); {remedy}") from None
    print(f"lineage of {graph.root}: {file.absolute()}")
    return 0
