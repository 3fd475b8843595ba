"""The model card: metadata that the hub's library reads, every source, every figure, and nothing invented."""

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from flows.__main__ import main
from models.artifacts import Manifest
from models.publishing import Dossier
from tasks.finding import resolve
from tasks.publishing.dossier import gather
from tests.published import HUB_ORIGIN, Shelf


def card_of(shelf: Shelf, stage: str, folder: Path, *options: str) -> ModelCard:
    """The card of an export, read by the hub's library."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALIGN_HOME", str(shelf.store.home))
        assert main(["export", getattr(shelf, stage), str(folder), *options]) == 0
    card: ModelCard = ModelCard.load(folder / "README.md")
    return card


def data_of(shelf: Shelf, stage: str, folder: Path, *options: str) -> Any:
    """The metadata of an export's card."""
    return card_of(shelf, stage, folder, *options).data


def table_after(card: ModelCard, heading: str) -> list[list[str]]:
    """Rows of the first table of a section."""
    section = card.text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if "---" not in line]


def dossier_of(shelf: Shelf, name: str, **changes: Any) -> Dossier:
    path, manifest = resolve(shelf.store, name)
    return gather(shelf.store, path.name, Manifest.model_validate(manifest.model_dump() | {"digest": ""} | changes))


def test_metadata_that_the_hub_reads(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "home", HUB_ORIGIN, real=False)
    data = data_of(shelf, "dpo", tmp_path / "out")
    assert (data.license, data.library_name, data.pipeline_tag) == ("apache-2.0", "transformers", "text-generation")
    assert (data.base_model, data.base_model_relation) == ("somebody/small-model", "finetune")
    figures = {figure.metric_type: figure for figure in data.eval_results or []}
    assert {name: figure.metric_value for name, figure in figures.items()} == {
        "exact_match": 0.5,
        "preference_accuracy": 0.875,
    }
    assert figures["exact_match"].metric_args == {"confidence_interval_95": [0.25, 0.75], "rows": 16}
    assert figures["exact_match"].dataset_type == "heldout.jsonl"
    assert data.model_name == shelf.dpo


@pytest.mark.parametrize(
    ("stage", "options", "library", "task", "tags"),
    [
        ("reward", (), "transformers", "text-classification", {"reward", "reward-model"}),
        ("sft", ("--weights", "adapter"), "peft", "text-generation", {"sft"}),
        ("base", (), "transformers", "text-generation", {"base"}),
    ],
)
def test_each_form_says_what_it_is(
    stage: str, options: tuple[str, ...], library: str, task: str, tags: set[str], paper_shelf: Shelf, tmp_path: Path
) -> None:
    data = data_of(paper_shelf, stage, tmp_path / "out", *options)
    assert (data.library_name, data.pipeline_tag) == (library, task)
    assert tags <= set(data.tags or [])
    assert data.base_model is None  # it came from a folder


def test_everything_that_it_was_made_from_is_named(paper_shelf: Shelf, tmp_path: Path) -> None:
    card = card_of(paper_shelf, "dpo", tmp_path / "out")
    lineage = table_after(card, "Lineage")
    assert [row[0] for row in lineage[1:4]] == [paper_shelf.base, paper_shelf.sft, paper_shelf.dpo]
    assert f"{paper_shelf.sft} (policy)" in lineage[3][2]
    assert "a" * 64 in card.text  # the base model's digest
    header, *settings = table_after(card, "Training")
    assert header == ["", paper_shelf.sft, paper_shelf.dpo]
    known = {row[0]: row[1:] for row in settings}
    assert known["lora.r"] == ["8", "8"]
    assert known["beta"] == ["", "0.1"]
    assert known["seed"] == ["1", "1"]
    data = {row[0]: row for row in table_after(card, "Data")[1:]}
    assert {use: (row[3], row[-1]) for use, row in data.items()} == {
        "sft": ("7", "cc-by-4.0"),
        "dpo": ("7", "mit"),
        "prompts": ("7", "unknown"),  # recipes say a licence for training data alone
    }
    assert "duplicates dropped: 2" in data["sft"][4]
    assert len(data["sft"][5].strip("`")) == 64
    figures = table_after(card, "Held-out figures")
    assert figures[1] == ["exact match", "0.500", "0.250 to 0.750", "16", paper_shelf.evaluation]
    versions = dict(table_after(card, "How it was made"))
    assert versions["trl"] == "1.16.0"
    assert versions["alignment-pipeline, training"] == f"0.1.0, commit `{'d' * 40}`"
    assert "Be brief." in card.text


def test_licences_are_inherited_and_gaps_are_named(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "home", licenses={"sft": "cc-by-nc-4.0", "preferences": ""}, real=False)
    card = card_of(shelf, "dpo", tmp_path / "out")
    data: Any = card.data
    assert (data.license, data.license_name) == ("other", "unknown")
    assert table_after(card, "Licence")[1:] == [
        ["base model small-model", "apache-2.0", "permissive"],
        ["dataset sft.jsonl", "cc-by-nc-4.0", "non-commercial"],
        ["dataset preferences.jsonl", "unknown", "unknown"],
    ]
    assert "dataset sft.jsonl (cc-by-nc-4.0) allows no commercial use" in card.text
    assert "dataset preferences.jsonl is not known" in card.text
    assert "no legal advice" in card.text
    assert data_of(shelf, "sft", tmp_path / "sft").license == "cc-by-nc-4.0"


def test_a_checkpoint_without_figures_says_so(paper_shelf: Shelf, tmp_path: Path) -> None:
    card = card_of(paper_shelf, "sft", tmp_path / "out")
    assert "has not been judged on held-out rows" in card.text
    data: Any = card.data
    assert not data.eval_results


def test_a_damaged_evaluation_is_not_quoted(paper_shelf: Shelf) -> None:
    assert len(dossier_of(paper_shelf, paper_shelf.dpo).judgements) == 1
    result = paper_shelf.path(paper_shelf.evaluation) / "result.json"
    result.write_text(result.read_text().replace("0.875", "0.999"))
    assert dossier_of(paper_shelf, paper_shelf.dpo).judgements == ()


def test_a_manifest_of_an_early_layout_names_what_can_be_found(paper_shelf: Shelf) -> None:
    whole = dossier_of(paper_shelf, paper_shelf.dpo)
    early = dossier_of(paper_shelf, paper_shelf.dpo, schema_version=1, ancestors={})
    assert early.lineage == whole.lineage
    assert early.datasets == whole.datasets
    base = paper_shelf.path(paper_shelf.base)
    base.rename(base.parent / ".gone")
    sft = paper_shelf.path(paper_shelf.sft)
    sft.rename(sft.parent / ".gone")
    lost = dossier_of(paper_shelf, paper_shelf.dpo, schema_version=1, ancestors={})
    assert lost.missing == (paper_shelf.sft,)
    assert lost.licensing.license == "mit"


def test_text_of_others_stays_in_its_cell(tmp_path: Path) -> None:
    origin = {"source": "folder", "name": "a | b\n## <script>", "license": "mit"}
    shelf = Shelf(tmp_path / "home", origin, real=False)
    text = card_of(shelf, "dpo", tmp_path / "out").text
    assert "<script>" not in text
    assert "\n## &lt;script" not in text
    assert "a \\| b ## &lt;script>" in text
