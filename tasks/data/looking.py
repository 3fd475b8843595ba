"""What a file would be for each role, told without a recipe; nothing is left written."""

import tempfile
from array import array
from collections.abc import Sequence
from pathlib import Path

from models.errors import InputError
from models.preparation import Cleaning, DataReport, Lengths, RenderedExample, RoleReport
from models.sources import BaseModelSource, DatasetSource
from tasks.base_model_check import check_base_model
from tasks.child import run_in_child
from tasks.child_main import ChildOptions
from tasks.core.entry import render
from tasks.data.checking import measured_by, wanted_rows
from tasks.data.conversion import Wanted, characters
from tasks.data.formats.reading import Role
from tasks.data.located import locate
from tasks.data.preparations import Preparations
from tasks.data.snapshot import first_row, read_rows

_RENDERING = ChildOptions(threads=1, timeout_seconds=300.0)


def look(source: DatasetSource, roles: Sequence[Role], model: BaseModelSource | None = None) -> DataReport:
    """Read a source for each role, and say what comes of it.

    Args:
        source: What to look at.
        roles: What the rows may be for.
        model: Whose tokenizer measures and renders; none: characters are counted.

    Raises:
        InputError: there is no such file, or no such model.
    """
    locate(source)
    if model:
        check_base_model(model)
    return DataReport(path=source.label, roles=tuple(_report(source, role, model) for role in roles))


def _report(source: DatasetSource, role: Role, model: BaseModelSource | None) -> RoleReport:
    wanted = wanted_rows(source, role, None, (), Cleaning(model=model))
    wanted = measured_by(wanted, model, None) if model else wanted
    with tempfile.TemporaryDirectory() as home:
        try:
            ready = Preparations(Path(home)).make(source, wanted)
        except InputError as error:
            return RoleReport(role=role, refused=str(error))
        lengths = array("Q", map(characters, read_rows(ready.folder)))
        report = RoleReport(role=role, found=ready.prepared, characters=_lengths(lengths))
        return report.model_copy(update={"example": _example(ready.folder, wanted)}) if model else report


def _lengths(lengths: "array[int]") -> Lengths:
    ordered, count = sorted(lengths), len(lengths)
    return Lengths(median=ordered[(count - 1) // 2], p99=ordered[(99 * count - 1) // 100], longest=ordered[-1])


def _example(folder: Path, wanted: Wanted) -> RenderedExample:
    arguments = (first_row(folder), wanted.tokenizer, wanted.chat_template)
    made: RenderedExample = run_in_child(render, arguments, _RENDERING, lambda report: None, lambda line: None)
    return made
