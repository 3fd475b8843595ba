"""Which code made something: this pipeline's version and, in a checkout, its commit."""

import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


@cache
def code_version() -> dict[str, str]:
    """This pipeline's version and, in a checkout, its commit and whether files differ from it."""
    try:
        found = {"alignment-pipeline": version("alignment-pipeline")}
    except PackageNotFoundError:
        found = {}
    commit = _git("rev-parse", "HEAD")
    return found | ({"commit": commit, "changed": str(bool(_git("status", "--porcelain"))).lower()} if commit else {})


def _git(*arguments: str) -> str:
    folder = Path(__file__).parents[1]
    if not (folder / ".git").exists():
        return ""
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=False)  # noqa: S603, S607
    return done.stdout.strip()
