"""Real files, looked at as by `align data`: each is recognised and keeps its rows, or is refused with a reason."""

from pathlib import Path
from typing import get_args

import pytest

from models.sources import DatasetSource
from tasks.data.formats.reading import Role
from tasks.data.formats.sentences import NAMES
from tasks.data.looking import look
from tests.forms.real import REAL
from tests.forms.rows import reply
from tests.prepared import sourced

SHARED = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
ROLES: tuple[Role, ...] = get_args(Role)
pytestmark = pytest.mark.skipif(not SHARED.exists(), reason="the real data is not here")


@pytest.mark.parametrize("name", REAL)
def test_real_files_are_recognised_or_refused(name: str) -> None:
    report = look(DatasetSource(path=str(SHARED / name)), ROLES)
    for role, expected in zip(report.roles, REAL[name], strict=True):
        if isinstance(expected, str):
            assert expected in role.refused, role.role
        else:
            key, rows = expected
            assert role.found, role.refused
            assert (role.found.recognised.partition(":")[0], role.found.rows) == (NAMES[key], rows), role.role


def test_every_real_file_is_tried() -> None:
    files = {f"{file.parent.name}/{file.name}" for file in SHARED.glob("*/*") if file.suffix in {".json", ".jsonl"}}
    assert files == set(REAL)


def test_real_files_are_read_by_a_mapping() -> None:
    solutions = {"prompt": "question", "completion": "175b_verification.solution"}
    path = SHARED / "gsm8k" / "example_model_solutions.jsonl"
    found = sourced(DatasetSource.model_validate({"path": str(path), "columns": solutions}), "sft")
    assert found.rows[0]["completion"][0]["content"].endswith("A: 18")
    persona = {"chosen": "answer_matching_behavior", "rejected": "answer_not_matching_behavior"}
    path = SHARED / "anthropic_evals" / "persona_agreeableness.jsonl"
    found = sourced(DatasetSource.model_validate({"path": str(path), "columns": persona}), "preference")
    assert found.rows[0]["chosen"] == reply(" Yes")
