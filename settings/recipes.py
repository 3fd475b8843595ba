"""Recipes from YAML files and command-line flags; flags are generated from the `Recipe` model and win over the file.

Relative paths in a recipe start at the recipe's file, those in flags at the working directory.
"""

import os
import re
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

import yaml
from pydantic import ValidationError
from pydantic_settings import CliSettingsSource, SettingsError

from models.errors import InputError, describe_validation
from models.recipe import Recipe

_RECIPES = Path(__file__).parent / "recipes"
_YAML_ENDINGS = {".yaml", ".yml"}
_FILE_ENDINGS = {
    ".jinja", ".txt", ".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".feather", ".gz", ".zst",
}  # fmt: skip
_INVALID_CHOICE = re.compile(r"invalid choice: '?(?P<given>.*?)'? \(choose from (?P<choices>.*)\)")


class FlagParser(ArgumentParser):
    """An argument parser whose errors are `InputError`s, so that nothing but the caller ends the process."""

    def error(self, message: str) -> NoReturn:
        """Refuse the command line, with the nearest of the choices where it is none of them."""
        remedy = f"see `{self.prog} --help`"
        if found := _INVALID_CHOICE.search(message):
            near = get_close_matches(found["given"], [each.strip(" '") for each in found["choices"].split(",")], n=1)
            remedy = f"did you mean '{near[0]}'?" if near else remedy
        raise InputError(f"command line: {message}; {remedy}")

    def refuse_unknown(self, extras: Sequence[str]) -> None:
        """Refuse what the parser could not use, with the nearest flag.

        Raises:
            InputError: there is something left.
        """
        if not extras:
            return
        unknown = next((extra for extra in extras if extra.startswith("-")), extras[0]).split("=")[0]
        known = [flag for flag in self._option_string_actions if flag.startswith("--")]
        near = get_close_matches(unknown, known, n=1) if unknown.startswith("-") else []
        remedy = f"did you mean '{near[0]}'?" if near else f"see `{self.prog} --help`"
        kind = "flag" if unknown.startswith("-") else "argument"
        raise InputError(f"command line: unknown {kind} '{unknown}'; {remedy}")


class RecipeFlags:
    """The flags of every field of a recipe, attached to a parser."""

    def __init__(self, parser: ArgumentParser) -> None:
        self._source: CliSettingsSource[Any] = CliSettingsSource(
            Recipe,  # type: ignore[arg-type]  # any Pydantic model works
            root_parser=parser,
            cli_implicit_flags=True,
            cli_hide_none_type=False,
        )

    def values(self, parsed: Namespace) -> dict[str, Any]:
        """What the flags ask for, nested like a recipe.

        Raises:
            InputError: a list or a JSON value cannot be read, or one flag contradicts another.
        """
        named = {key: value for key, value in vars(parsed).items() if key.split(".")[0] in Recipe.model_fields}
        given = {key: "null" if value == "None" else value for key, value in named.items()}
        _refuse_contradictions(given)
        try:
            return dict(self._source(parsed_args=given)())
        except (SettingsError, ValueError) as error:
            raise InputError(f"command line: {_innermost(error)}") from None


def _refuse_contradictions(given: Mapping[str, Any]) -> None:
    """A section cannot be left out and have a value."""
    for section in [key for key, value in given.items() if value == "null"]:
        for key in given:
            if key.startswith(f"{section}."):
                raise InputError(f"command line: --{key} contradicts --{section} null; remove one of them")


def shipped_recipes() -> dict[str, Path]:
    """Files of the recipes that come with the pipeline, by name."""
    return {path.stem: path for path in sorted(_RECIPES.glob("*.yaml"))}


def load_recipe(wanted: str, arguments: Sequence[str] = ()) -> Recipe:
    """Read a recipe and put flags over it.

    Args:
        wanted: A YAML file, or the name of a shipped recipe.
        arguments: Flags such as `--sft.learning_rate 1e-4`, `--dpo null`.

    Raises:
        InputError: the file, a value or a flag is wrong.
    """
    parser = FlagParser(prog="align run", allow_abbrev=False, add_help=False)
    flags = RecipeFlags(parser)
    parsed, extras = parser.parse_known_args(list(arguments))
    parser.refuse_unknown(extras)
    return build_recipe(wanted, flags.values(parsed))


def build_recipe(wanted: str, flags: Mapping[str, Any]) -> Recipe:
    """Read a recipe and put the values of flags, nested like a recipe, over it.

    Raises:
        InputError: the file or a value is wrong.
    """
    file = _find(wanted)
    document = _merge(_read_yaml(file), flags)
    try:
        _anchor_datasets(document, flags, file.parent)
    except RecursionError:
        raise InputError(f"{file}: a mapping contains itself through a YAML alias; write it out") from None
    _anchor_base_model(document, flags, file.parent)
    _anchor_rewards(document, flags, file.parent)
    try:
        return Recipe.model_validate(document)
    except ValidationError as error:
        raise InputError(_describe(error, file, flags)) from None


def _find(wanted: str) -> Path:
    """The recipe's file, absolute."""
    path = _expanded(wanted)
    if path.is_file():
        return path.absolute()
    if wanted in shipped_recipes():
        return shipped_recipes()[wanted]
    if path.is_dir() and wanted:
        raise InputError(f"{wanted}: is a folder; give a recipe's YAML file or one of: {_names()}")
    if path.suffix in _YAML_ENDINGS or len(path.parts) > 1:
        raise InputError(f"{wanted}: no such recipe file in {Path.cwd()}; give an existing file or one of: {_names()}")
    near = get_close_matches(wanted, shipped_recipes(), n=1)
    remedy = f"did you mean '{near[0]}'?" if near else f"give a YAML file or one of: {_names()}"
    raise InputError(f"'{wanted}' is neither a file nor a shipped recipe; {remedy}")


def _names() -> str:
    return ", ".join(shipped_recipes()) or "(none shipped)"


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        document = _StrictLoader(file.read_text("utf-8")).get_single_data()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f": line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise InputError(f"{file}{place}: not valid YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise InputError(f"{file}: not valid YAML: {str(error).splitlines()[0]}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: byte {error.start} is not UTF-8; a recipe is a YAML text file") from None
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror}") from None
    if document is None:
        raise InputError(f"{file}: the file is empty; a recipe needs at least `sft:` and `evaluation:`")
    if not isinstance(document, dict):
        rule = f"the top level is a {type(document).__name__}, not a mapping"
        raise InputError(f"{file}: {rule}; a recipe has keys such as `sft:` and `evaluation:`")
    return document


class _StrictLoader(yaml.SafeLoader):
    """YAML's safe types, with duplicate keys refused instead of the last one winning."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key '{key.value}' is given twice; keep one of them", key.start_mark
                )
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Put one nested mapping over another, key by key."""
    merged = dict(below)
    for key, value in above.items():
        under = merged.get(key)
        merged[key] = _merge(under if isinstance(under, dict) else {}, value) if isinstance(value, dict) else value
    return merged


def _anchor_datasets(document: dict[str, Any], flags: object, folder: Path) -> None:
    """Make every local dataset path absolute, in place; `path` means a dataset everywhere but in a reward's options."""
    for key, value in document.items():
        if key == "options":
            continue
        if isinstance(value, dict):
            document[key] = dict(value)
            _anchor_datasets(document[key], flags.get(key) if isinstance(flags, Mapping) else None, folder)
        elif isinstance(value, list) and all(isinstance(each, dict) for each in value):
            document[key] = [dict(each) for each in value]
            for each in document[key]:
                _anchor_datasets(each, flags.get(key) if isinstance(flags, Mapping) else None, folder)
        elif key == "path" and isinstance(value, list) and value and all(isinstance(each, str) for each in value):
            start = _start(key, flags, folder)
            document[key] = ",".join(_absolute_if_local(each, start) for each in value)
        elif key in ("path", "include_path") and isinstance(value, str):
            document[key] = _absolute_if_local(value, _start(key, flags, folder))


def _absolute_if_local(path: str, folder: Path) -> str:
    """An absolute path for what is or looks like a file or folder, or for each of several between commas.

    Names and hub ids stay as they are.
    """
    if "," in path and not (folder / _expanded(path)).exists():
        return ",".join(_absolute_if_local(each.strip(), folder) for each in path.split(",") if each.strip())
    local = _expanded(path)
    looks_local = path.startswith((".", "/", "~")) or path.count("/") > 1 or local.suffix.lower() in _FILE_ENDINGS
    return str((folder / local).resolve()) if looks_local or (path and (folder / local).exists()) else path


def _expanded(path: str) -> Path:
    """The path with a leading `~` replaced; unlike Path.expanduser, an unknown user's is left as it is."""
    return Path(os.path.expanduser(path))  # noqa: PTH111


def _anchor_base_model(document: dict[str, Any], flags: Mapping[str, Any], folder: Path) -> None:
    """Make the base model's folder and its template's file absolute, in place."""
    section = document.get("base_model")
    if not isinstance(section, dict):
        return
    given = flags.get("base_model") or {}
    name, template = section.get("name"), section.get("chat_template")
    if section.get("source") == "folder" and isinstance(name, str) and name:
        section["name"] = str((_start("name", given, folder) / _expanded(name)).resolve())
    if isinstance(template, str):
        section["chat_template"] = _absolute_if_local(template, _start("chat_template", given, folder))


def _anchor_rewards(document: dict[str, Any], flags: Mapping[str, Any], folder: Path) -> None:
    """Make the files of reward functions and the folders of reward models absolute, in place."""
    section = document.get("grpo")
    rewards = section.get("rewards") if isinstance(section, dict) else None
    start = _start("rewards", flags.get("grpo"), folder)
    for reward in rewards if isinstance(rewards, list) else []:
        if not isinstance(reward, dict):
            continue
        function, model = reward.get("function"), reward.get("model")
        if isinstance(function, str) and function.rpartition(":")[0].endswith(".py"):
            reward["function"] = str((start / _expanded(function)).resolve())
        if isinstance(model, str):
            reward["model"] = _absolute_if_local(model, start)


def _start(key: str, flags: object, folder: Path) -> Path:
    """Where a relative path begins: at the working directory if a flag gave it, else at the recipe's folder."""
    return Path.cwd() if isinstance(flags, Mapping) and key in flags else folder


def _describe(error: ValidationError, file: Path, flags: Mapping[str, Any]) -> str:
    """One line per problem, each with its place: the file or the command line."""
    lines = describe_validation(error, "").splitlines()
    return "\n".join(
        f"{_place(problem['loc'], file, flags)}: {line}" for problem, line in zip(error.errors(), lines, strict=False)
    )


def _place(location: tuple[str | int, ...], file: Path, flags: object) -> str:
    """The command line where a flag gave the value at that location, else the recipe's file."""
    for part in location:
        if not isinstance(flags, Mapping):
            return "command line"
        if part not in flags:
            return str(file)
        flags = flags[part]
    return "command line" if location else str(file)


def _innermost(error: BaseException) -> str:
    """Message of the error that pydantic-settings wraps, with the field that it names."""
    cause = error.__cause__
    return f"{error}: {cause}" if cause and str(cause) not in str(error) else str(error)
