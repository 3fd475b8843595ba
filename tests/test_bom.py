"""The bill of materials: valid CycloneDX, all ancestors with digests, and the figures with their intervals."""

import json
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from flows.__main__ import main
from tasks.files import file_digest
from tests.published import FOLDER_ORIGIN, HUB_ORIGIN, Shelf


def bom_of(shelf: Shelf, stage: str, folder: Path, *options: str) -> dict[str, Any]:
    """The bill of an export, which the schema accepts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALIGN_HOME", str(shelf.store.home))
        assert main(["export", getattr(shelf, stage), str(folder), *options]) == 0
    text = (folder / "bom.cdx.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    return json.loads(text)  # type: ignore[no-any-return]


@pytest.mark.parametrize("origin", [HUB_ORIGIN, FOLDER_ORIGIN])
@pytest.mark.parametrize(("stage", "weights"), [("base", "merged"), ("reward", "adapter"), ("dpo", "merged")])
@pytest.mark.parametrize("licenses", [{}, {"sft": "MIT OR Apache-2.0", "preferences": ""}, {"sft": "our own terms"}])
def test_the_schema_accepts_every_bill(
    origin: dict[str, str], stage: str, weights: str, licenses: dict[str, str], tmp_path: Path
) -> None:
    shelf = Shelf(tmp_path / "home", origin, licenses, real=False)
    assert bom_of(shelf, stage, tmp_path / "out", "--weights", weights)


def test_the_validator_finds_faults(paper_shelf: Shelf, tmp_path: Path) -> None:
    bom = bom_of(paper_shelf, "dpo", tmp_path / "out")
    bom["metadata"]["component"]["modelCard"]["modelParameters"]["approach"]["type"] = "magic"
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(bom))


def test_all_that_it_was_made_from_is_a_component(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "home", HUB_ORIGIN, real=False)
    bom = bom_of(shelf, "dpo", tmp_path / "out")
    model, parts = bom["metadata"]["component"], {part["bom-ref"]: part for part in bom["components"]}
    assert set(parts) == {shelf.base, shelf.sft, shelf.datasets["sft"], shelf.datasets["preferences"]}
    assert parts[shelf.base]["purl"] == f"pkg:huggingface/somebody/small-model@{'c' * 40}"
    assert parts[shelf.base]["licenses"] == [{"license": {"id": "Apache-2.0"}}]
    assert parts[shelf.datasets["sft"]]["licenses"] == [{"license": {"id": "CC-BY-4.0"}}]
    (digest,) = parts[shelf.datasets["sft"]]["hashes"]
    assert (digest["alg"], len(digest["content"])) == ("SHA-256", 64)
    needs = {entry["ref"]: set(entry["dependsOn"]) for entry in bom["dependencies"]}
    assert needs[shelf.dpo] == {shelf.sft, shelf.datasets["preferences"]}
    assert needs[shelf.sft] == {shelf.base, shelf.datasets["sft"]}
    assert needs[shelf.base] == set()
    assert model["bom-ref"] == shelf.dpo
    assert [entry["ref"] for entry in model["modelCard"]["modelParameters"]["datasets"]] == [
        shelf.datasets["sft"],
        shelf.datasets["preferences"],
    ]


def test_hashes_are_the_files(paper_shelf: Shelf, tmp_path: Path) -> None:
    bom = bom_of(paper_shelf, "dpo", tmp_path / "out")
    listed = {file["name"]: file["hashes"][0]["content"] for file in bom["metadata"]["component"]["components"]}
    files = {path.name: file_digest(path) for path in (tmp_path / "out").iterdir()}
    assert listed == {name: digest for name, digest in files.items() if name not in {"bom.cdx.json", "export.json"}}


def test_figures_have_their_intervals(paper_shelf: Shelf, tmp_path: Path) -> None:
    card = bom_of(paper_shelf, "dpo", tmp_path / "out")["metadata"]["component"]["modelCard"]
    assert card["quantitativeAnalysis"]["performanceMetrics"] == [
        {"type": "exact_match", "value": "0.5", "confidenceInterval": {"lowerBound": "0.25", "upperBound": "0.75"}},
        {
            "type": "preference_accuracy",
            "value": "0.875",
            "confidenceInterval": {"lowerBound": "0.625", "upperBound": "0.9375"},
        },
    ]
    settings = {entry["name"]: entry["value"] for entry in card["properties"]}
    assert settings["alignment-pipeline:beta"] == "0.1"
    assert settings["alignment-pipeline:lora.r"] == "8"
