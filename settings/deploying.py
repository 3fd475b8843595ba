"""What `prefect deploy` puts into prefect.yaml in place of copies: a recipe as parameters, the version."""

from importlib.metadata import version
from pathlib import Path
from typing import Any

from settings.recipes import load_recipe


def deployed(recipe: str) -> dict[str, Any]:
    """A build step: reads a recipe's file once, when the deployment is made.

    Args:
        recipe: A YAML file, or the name of a shipped recipe.

    Returns:
        `recipe`: every value of it, as the form shows them; paths below the working directory are relative, so that
        they hold in every checkout. `name`: what its runs are called after. `version`: of this pipeline.

    Raises:
        InputError: the file or a value is wrong.
    """
    values = load_recipe(recipe).model_dump(mode="json")
    return {"recipe": _relative(values), "name": Path(recipe).stem, "version": version("alignment-pipeline")}


def _relative(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _relative(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_relative(each) for each in value]
    return value.removeprefix(f"{Path.cwd()}/") if isinstance(value, str) else value
