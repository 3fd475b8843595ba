"""The commands that hand a checkpoint to others: `align export`, and `align verify` of an exported folder.

Heavy imports stay inside the functions.
"""
# ruff: noqa: T201 - a command prints

import sys
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from models.errors import InputError

if TYPE_CHECKING:
    from models.publishing import Export, ExportRequest


def export(arguments: Namespace) -> int:
    """Write a checkpoint as a folder for others, and upload it where that is asked for."""
    from flows.reading import child_options, make_whole, open_store
    from tasks.finding import resolve
    from tasks.publishing.export import export as write
    from tasks.publishing.hub import check_push, push

    request, folder = _request(arguments), Path(arguments.folder)
    if arguments.push:
        check_push(arguments.push, arguments.public)
    store = open_store()
    path = resolve(store, arguments.checkpoint)[0]
    make_whole(store, path)
    written = write(store, path, folder, request, child_options(), _tell)
    commit = push(folder, written, arguments.push, arguments.public) if arguments.push else ""
    if arguments.json:
        print(written.model_dump_json(indent=2))
    else:
        _sum_up(written, arguments, commit)
    return 0


def is_export(wanted: str) -> bool:
    """Whether a user means an exported folder."""
    from tasks.publishing.export import RECORD

    return (Path(wanted) / RECORD).is_file()


def verify_export(arguments: Namespace) -> int:
    """Read an exported folder again and name every damaged file; 1 where there is one, or the signature is wrong."""
    from flows.reading import print_json
    from tasks.publishing.export import export_damage, read_export
    from tasks.publishing.signing import SIGNATURE, verify_signature

    folder = Path(arguments.checkpoint)
    record = read_export(folder)
    lines = export_damage(folder, record) if record else []
    if arguments.key and not lines:
        verify_signature(folder, Path(arguments.key))
    if not (folder / SIGNATURE).is_file():
        standing = "there is none"
    elif arguments.key:
        standing = "not verified, since files are damaged" if lines else "holds"
    else:
        standing = "not verified; give --key"
    if arguments.json:
        print_json({"verified": 1, "damaged": {str(folder): lines} if lines else {}, "signature": standing})
    else:
        print("".join(f"{line}\n" for line in lines), end="")
        print(f"{folder}: {len(lines)} files damaged or missing; signature: {standing}")
    return int(bool(lines))


def _request(arguments: Namespace) -> "ExportRequest":
    from pydantic import ValidationError

    from models.errors import describe_validation
    from models.publishing import ExportRequest

    if arguments.public and not arguments.push:
        raise InputError("--public: there is nothing to show without --push REPO; add that, or leave --public out")
    try:
        return ExportRequest(weights=arguments.weights, dtype=arguments.dtype, sign=arguments.sign)
    except ValidationError as error:
        raise InputError(describe_validation(error, "command line")) from None


def _tell(phase: str) -> None:
    print(f"{phase} ...", file=sys.stderr)


def _sum_up(written: "Export", arguments: Namespace, commit: str) -> None:
    size = sum(entry.size_bytes for entry in written.files)
    what = f"{written.weights} weights in {written.dtype}"
    print(f"{written.source}: {what}, {len(written.files) + 1} files, {size / 1e6:.1f} MB")
    if written.relative_error is not None:
        print(f"read back: its outputs differ from the checkpoint's by {written.relative_error:.2g} of their norm")
    if written.base_model:
        print(f"the adapter belongs on {written.base_model}")
    print(f"licence: {written.licensing.license_name or written.licensing.license}")
    for caution in written.licensing.cautions:
        print(f"caution: {caution}")
    if arguments.sign:
        print(f"signed with {arguments.sign}")
    print(f"folder: {arguments.folder}")
    if commit:
        print(f"uploaded: {commit}")
