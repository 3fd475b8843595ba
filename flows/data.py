"""`align data`: what a file would be for each role, without a recipe."""

import importlib.util
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import get_args

from pydantic import ValidationError

from models.errors import InputError, describe_validation
from models.sources import BaseModelSource, Columns, DatasetSource, FormatName

_KEYS = ("format", "name", "split", "revision", "max_rows")


def add_data(command: ArgumentParser) -> None:
    """Add the command's arguments."""
    command.add_argument("path", metavar="PATH", help="a file, a folder, a pattern or a hub id, as in a recipe")
    command.add_argument("--role", choices=("sft", "preference", "prompts"), help="what it is for; default: each")
    command.add_argument("--format", choices=get_args(FormatName), help="how rows are read; default: recognised")
    for column in Columns.model_fields:
        command.add_argument(f"--columns.{column}", metavar="COLUMN", help=f"the column that holds the {column}")
    command.add_argument("--max_rows", metavar="N", type=int, help="look at the first N rows only")
    for key in ("name", "split", "revision"):
        command.add_argument(f"--{key}", help=f"{key} of a hub dataset")
    command.add_argument("--model", help="folder, package or hub id of a model that measures rows and shows one")
    command.add_argument("--model_revision", help="commit, tag or branch of a hub model")


def data(arguments: Namespace) -> int:
    """Show what a file is for each role; 2 where it can serve none."""
    from flows.data_tables import print_report
    from flows.reading import print_json
    from flows.terminal import make_console
    from tasks.data.formats.reading import Role
    from tasks.data.looking import look

    roles = (arguments.role,) if arguments.role else get_args(Role)
    report = look(_source(arguments), roles, _model(arguments))
    if arguments.json:
        print_json(report.model_dump(mode="json") | {"serves": report.serves})
    else:
        print_report(report, make_console())
    return 0 if report.serves else 2


def _source(arguments: Namespace) -> DatasetSource:
    given = vars(arguments)
    columns = {column: given[f"columns.{column}"] for column in Columns.model_fields if given[f"columns.{column}"]}
    asked = {"path": arguments.path} | {key: given[key] for key in _KEYS if given[key] is not None}
    try:
        return DatasetSource.model_validate(asked | ({"columns": columns} if columns else {}))
    except ValidationError as error:
        raise InputError(describe_validation(error, "command line")) from None


def _model(arguments: Namespace) -> BaseModelSource | None:
    name, revision = arguments.model, arguments.model_revision
    if not name:
        if revision:
            raise InputError(f"--model_revision '{revision}' needs a hub model; add --model, or remove it")
        return None
    is_package = name.isidentifier() and importlib.util.find_spec(name) is not None
    kind = "folder" if Path(name).is_dir() else "package" if is_package else "hub"
    try:
        return BaseModelSource.model_validate({"source": kind, "name": name, "revision": revision})
    except ValidationError as error:
        raise InputError(describe_validation(error, "--model")) from None
