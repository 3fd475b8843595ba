"""The shape of the repository: light imports, a docstring in every module, files that fit a head."""

import ast
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from settings.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("flows", "tasks", "models", "settings")
MODULES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
HEAVY = ("torch", "transformers", "trl", "peft", "datasets", "accelerate", "pandas")
MOST_LINES = 300


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_no_flow_hides_a_library() -> None:
    """Prefect puts the folder of a deployment's entrypoint in front of all others that modules are looked for in."""
    libraries = {*sys.stdlib_module_names, *(one.split(".")[0] for one in packages_distributions())}
    assert {path.stem for path in (ROOT / "flows").glob("*.py")} & libraries == set()


@pytest.mark.parametrize(
    "modules", ["flows.align, flows.__main__", "tasks.core.entry, tasks.core.plan, tasks.core.statistics"]
)
def test_no_learning_library_is_imported(modules: str) -> None:
    code = f"import sys, {modules}; print(sorted(set({HEAVY!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("package", "forbidden"), [("models", "prefect, pydantic_settings, yaml"), ("settings", "prefect")]
)
def test_contracts_and_settings_import_little(package: str, forbidden: str) -> None:
    modules = ", ".join(name(path)[:-3].replace("/", ".") for path in MODULES if name(path).startswith(f"{package}/"))
    code = f"import sys, {modules}; print(sorted(set('{forbidden}'.split(', ')) & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code.replace(".__init__", "")], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_the_packages_are_there() -> None:
    assert {name(path).partition("/")[0] for path in MODULES} == set(PACKAGES)


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_module_says_what_it_is_for(path: Path) -> None:
    assert len(ast.get_docstring(ast.parse(path.read_text())) or "") > 10


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_module_fits_a_head(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MOST_LINES
    assert path.stem not in {"utils", "helpers", "common", "misc"}


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_no_pickle_and_no_remote_code(path: Path) -> None:
    text = path.read_text()
    assert "trust_remote_code=True" not in text
    assert not {"pickle", "dill", "joblib", "cloudpickle"} & {
        alias.name
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }


def test_every_setting_is_read_somewhere() -> None:
    read = {
        node.attr
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }
    assert set(Settings.model_fields) <= read


def test_every_module_of_a_stage_has_one_public_task() -> None:
    for path in (ROOT / "tasks").glob("*.py"):
        tree = ast.parse(path.read_text())
        tasks = [
            node.name
            for node in tree.body
            if isinstance(node, ast.FunctionDef)
            and any("task" in ast.unparse(decorator).split("(")[0].split(".") for decorator in node.decorator_list)
        ]
        assert len(tasks) <= 1, path
