"""Nothing secret is written: canaries in environment, token files and paths, and every byte searched afterwards."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tiny import build_tiny_model, tiny_recipe, write_recipe, write_tiny_data

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
CANARY = "canary"
SECRETS = {
    name: f"{CANARY}-{name.lower()}"
    for name in (
        "HF_TOKEN",
        "WANDB_API_KEY",
        "AWS_SECRET_ACCESS_KEY",
        "OPENAI_API_KEY",
        "SOME_PASSWORD",
        "ALIGN_JUDGE_API_KEY",
        "USER",
        "LOGNAME",
    )
}
PASSED_ON = (
    ("lineage", "grpo", "--json"),
    ("lineage", "grpo", "--dot"),
    ("lineage", "grpo", "--mermaid"),
    ("lineage", "sft", "--descendants", "--json"),
    ("diff", "sft", "grpo", "--json"),
    ("prune", "--json"),
    ("aliases", "--json"),
)
"""Commands whose answers people send to others."""
FAILING = {"ALIGN_MEMORY_LIMIT_BYTES": "300000000"}  # less than PyTorch takes


TRAITOR = """
import os

def betray(**kwargs):
    raise ValueError({name: value for name, value in os.environ.items() if name != "HOME"})
"""
"""A reward function that tells all that it knows of its environment, but where the user is at home."""


@pytest.fixture(scope="module")
def users_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's own folder, outside the artifact root: the model, the data, the recipe and a token."""
    folder = tmp_path_factory.mktemp("user") / f"{CANARY}-home"
    model, data = build_tiny_model(folder / "model"), write_tiny_data(folder / "data")
    recipe = tiny_recipe(model, data, gate={"better": [{"surely": False}]})
    recipe["grpo"]["rewards"] += [{"kind": "function", "function": "mine.py:betray", "failures_allowed": 1.0}]
    (folder / "mine.py").write_text(TRAITOR)
    write_recipe(folder / "recipe.yaml", recipe)
    (folder / "hf").mkdir()
    (folder / "hf" / "token").write_text(f"{CANARY}-token-file")
    return folder


@pytest.fixture(scope="module")
def written(users_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command wrote, in a run that completed and in one whose training failed, with what it printed."""
    out = tmp_path_factory.mktemp("written")
    align(users_folder, out / "completed", "run", str(users_folder / "recipe.yaml"))
    ask(users_folder, out / "completed", out / "passed-on")
    shutil.copytree(out / "completed", out / "failed")
    shutil.rmtree(out / "failed" / "checkpoints")
    align(users_folder, out / "failed", "run", str(users_folder / "recipe.yaml"), code=1, settings=FAILING)
    assert list((out / "failed" / "checkpoints" / ".partial").glob("sft-*"))
    return out


def align(
    user: Path,
    home: Path,
    *arguments: str,
    code: int = 0,
    settings: dict[str, str] | None = None,
    output: Path | None = None,
) -> None:
    """Run the command with canaries wherever it might look, and keep what it prints."""
    places = {"HOME": str(user), "HF_HOME": str(user / "hf"), "PREFECT_HOME": str(home.parent / "prefect")}
    environment = os.environ | SECRETS | places | {"ALIGN_HOME": str(home)} | (settings or {})
    environment.pop("PREFECT_API_URL", None)
    command = [sys.executable, "-m", "flows", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    output = home.parent / f"{home.name}-{arguments[0]}.txt" if output is None else output
    output.write_text(done.stdout + done.stderr)


def ask(user: Path, home: Path, answers: Path) -> None:
    """Everything that tells others of a finished run: exported folders, the page of a lineage, and printed data."""
    answers.mkdir()
    promotion = ("promote", "grpo", "--reason", "the best", "--despite-gate")
    align(user, home, *promotion, output=answers / "promote.txt")
    align(user, home, "compare", "dpo", "grpo", "--json", output=answers / "compare.txt")
    for weights in ("merged", "adapter"):
        folder = str(answers / f"export-{weights}")
        align(
            user, home, "export", "champion", folder, "--weights", weights, "--json", output=answers / f"{weights}.txt"
        )
    align(user, home, "lineage", "grpo", "--html", str(answers / "page.html"), output=answers / "page.txt")
    for number, command in enumerate(PASSED_ON):
        align(user, home, *command, output=answers / f"{number}-{command[0]}.txt")
    align(user, home, "runs", "--json", output=home.parent / "runs.txt")


def files(folder: Path) -> Iterator[Path]:
    found = [path for path in folder.rglob("*") if path.is_file()]
    assert found
    return iter(found)


def test_no_secret_is_written(written: Path) -> None:
    secrets = [*SECRETS.values(), f"{CANARY}-token-file"]
    found = [
        (path.relative_to(written), secret)
        for path in files(written)
        for secret in secrets
        if secret.encode() in path.read_bytes()
    ]
    assert not found


def test_what_is_searched_is_there(written: Path) -> None:
    answers = [path for path in (written / "passed-on").glob("*.*") if path.is_file()]
    assert len(answers) == 6 + len(PASSED_ON)
    assert all("grpo-" in path.read_text() for path in answers)
    assert {path.name for path in files(written / "passed-on")} >= {"README.md", "bom.cdx.json", "export.json"}
    assert '"recipe_name": "recipe"' in (written / "runs.txt").read_text()


def test_no_path_of_the_users_is_in_what_is_passed_on(written: Path) -> None:
    """All but a run's own record: going on with a run needs to know where its data lies."""
    found = [
        path.relative_to(written)
        for home in ("completed", "failed", "passed-on")
        for path in files(written / home)
        if path.name != "run.json" and f"{CANARY}-home".encode() in path.read_bytes()
    ]
    assert not found
