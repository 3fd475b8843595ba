"""Where a user's reward function lies, and whether it can be what GRPO calls: read from its file, which is not run."""

import ast
import sys
from difflib import get_close_matches
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from models.errors import InputError
from models.recipe import GRPO
from tasks.files import file_digest

_PLACE = "grpo.rewards: function"


def function_digests(grpo: GRPO) -> dict[str, str]:
    """SHA-256 of each function's file, by the reward's label: a changed function trains other weights.

    Raises:
        InputError: a file is not there.
    """
    return {reward.label: file_digest(function_file(reward.function)) for reward in grpo.rewards if reward.function}


def check_function(entrypoint: str) -> None:
    """Refuse an entrypoint whose file or function is not there, or that cannot take what GRPO calls it with.

    Raises:
        InputError: that, with the nearest name.
    """
    file, name = function_file(entrypoint), entrypoint.rpartition(":")[2]
    try:
        module = ast.parse(file.read_bytes(), str(file))
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"{_PLACE} '{entrypoint}': {file} is not valid Python ({error}); mend it") from None
    functions = {
        node.name: node for node in ast.walk(module) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    if name not in functions:
        _refuse_unless_assigned(module, name, entrypoint, list(functions))
    elif not functions[name].args.kwarg:
        raise InputError(
            f"{_PLACE} '{entrypoint}': {file.name}: line {functions[name].lineno}: {name} has no **kwargs, but gets "
            "prompts, completions, completion_ids and every column of the row; add **kwargs"
        )


def function_file(entrypoint: str) -> Path:
    """The file of a function that is named by `path/file.py:name` or `package.module:name`.

    Raises:
        InputError: there is none.
    """
    place = entrypoint.rpartition(":")[0]
    file = Path(place) if place.endswith(".py") else _module_file(place)
    if file and file.is_file():
        return file
    near = get_close_matches(Path(place).name, [path.name for path in Path(place).parent.glob("*.py")], n=1)
    remedy = f"did you mean '{near[0]}'?" if near else "give `path/file.py:name` or `package.module:name`"
    raise InputError(
        f"{_PLACE} '{entrypoint}': there is no such {'file' if place.endswith('.py') else 'module'}; {remedy}"
    )


def _module_file(dotted: str) -> Path | None:
    """The file of a module, found in its packages' folders as an import would, without importing them."""
    path: list[str] | None = [*sys.path, str(Path.cwd())]
    spec: ModuleSpec | None = None
    for at in range(1, len(parts := dotted.split(".")) + 1):
        spec = PathFinder.find_spec(".".join(parts[:at]), path)
        path = list(spec.submodule_search_locations or ()) if spec else []
    return Path(spec.origin) if spec and spec.origin and spec.has_location else None


def _refuse_unless_assigned(module: ast.Module, name: str, entrypoint: str, functions: list[str]) -> None:
    """A name may also be imported or assigned: then only the call shows what it is."""
    bound = {
        named.asname or named.name
        for node in ast.walk(module)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for named in node.names
    }
    bound |= {node.id for node in ast.walk(module) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    bound |= {node.name for node in ast.walk(module) if isinstance(node, ast.ClassDef)}
    if name in bound:
        return
    near = get_close_matches(name, functions, n=1)
    remedy = f"did you mean '{near[0]}'?" if near else f"it defines: {', '.join(functions) or 'no function'}"
    raise InputError(f"{_PLACE} '{entrypoint}': the file has no function '{name}'; {remedy}")
