"""Under which licence a base model or a dataset comes, as its publisher says; asked only when it is first fetched."""

from contextlib import suppress
from importlib.metadata import metadata, packages_distributions
from pathlib import Path
from typing import Any

from models.errors import InputError
from models.sources import BaseModelSource, RowSource
from tasks.base_model_check import look_up


def model_license(source: BaseModelSource) -> str | None:
    """The recipe's word, else that of hub, folder or package; none: nobody says."""
    found = {"hub": _hub_model, "folder": _folder, "package": _package}
    return source.license or found[source.source](source)


def hub_dataset(source: RowSource) -> dict[str, str]:
    """What the hub says of a dataset: its `commit` and `license`; nothing where it cannot be asked."""
    from huggingface_hub import HfApi

    with suppress(Exception):  # rows that are in the library's cache can be read without the hub
        found = HfApi().dataset_info(source.path, revision=source.revision)
        said = {"commit": found.sha, "license": _declared(found.card_data)}
        return {key: value for key, value in said.items() if value}
    return {}


def _hub_model(source: BaseModelSource) -> str | None:
    with suppress(InputError):
        return _declared(look_up(source).card_data)
    return None


def _folder(source: BaseModelSource) -> str | None:
    from huggingface_hub.repocard import metadata_load
    from yaml import YAMLError

    card = Path(source.name) / "README.md"
    with suppress(OSError, ValueError, YAMLError):
        return _declared(metadata_load(card))
    return None


def _package(source: BaseModelSource) -> str | None:
    """A package's SPDX expression, or its older free text where that is one word or so."""
    distribution = next(iter(packages_distributions().get(source.name, [])), None)
    if not distribution:
        return None
    found = metadata(distribution).json
    text = str(found.get("license_expression") or found.get("license") or "")
    return text if 0 < len(text) < 40 else None


def _declared(card: Any) -> str | None:
    """The licence in a card's metadata; several are joined as SPDX does."""
    declared = card.get("license") if card else None
    return " AND ".join(declared) if isinstance(declared, list) else declared
