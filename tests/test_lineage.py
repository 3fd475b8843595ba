"""Lineage as tree, JSON, DOT, Mermaid and page; both ways; also of what is gone, pruned or damaged."""

import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from flows.__main__ import main
from models.errors import InputError
from models.fingerprint import fingerprint
from models.lineage import LineageGraph
from tasks.lineage import ancestry, descent, edges
from tasks.reporting import lineage_page
from tasks.reporting.lineage_page import lay_out, render_drawing
from tasks.store import MANIFEST, ArtifactStore
from tests.folders import family, name_of, publish

BASE, DATASET, SFT, REWARD, DPO, GRPO = (
    name_of(stage) for stage in ("base", "dataset", "sft", "reward", "dpo", "grpo")
)
Asking = Callable[..., str]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ArtifactStore:
    """A family of folders, GRPO on top."""
    store = ArtifactStore(tmp_path / "home")
    family(store)
    publish(store, "grpo", parents={"policy": DPO, "reward_model": REWARD, "dataset": DATASET})
    monkeypatch.setenv("ALIGN_HOME", str(store.home))
    monkeypatch.chdir(tmp_path)
    return store


@pytest.fixture
def ask(store: ArtifactStore, capsys: pytest.CaptureFixture[str]) -> Asking:
    """Run `align lineage` and return what it prints."""

    def asking(*arguments: str) -> str:
        assert main(["lineage", *arguments]) == 0
        return capsys.readouterr().out

    return asking


def test_a_tree_opens_each_folder_once(ask: Asking) -> None:
    said = ask("grpo")
    for name in (GRPO, DPO, REWARD, BASE):
        assert len(re.findall(name, said)) == 1
    assert said.count(f"{SFT} see above") == 1
    assert "rows.jsonl" in said


def test_json_holds_every_node_and_edge(ask: Asking, store: ArtifactStore) -> None:
    graph = LineageGraph.model_validate_json(ask("grpo", "--json"))
    assert (graph.root, graph.direction) == (GRPO, "ancestors")
    assert set(graph.nodes) == {BASE, DATASET, SFT, REWARD, DPO, GRPO}
    assert set(edges(graph)) == {
        (GRPO, "policy", DPO), (GRPO, "reward_model", REWARD), (GRPO, "dataset", DATASET),
        (DPO, "policy", SFT), (DPO, "dataset", DATASET), (REWARD, "policy", SFT), (REWARD, "dataset", DATASET),
        (SFT, "policy", BASE), (SFT, "dataset", DATASET),
    }  # fmt: skip


@pytest.mark.parametrize("wanted", [DATASET, f"dataset-{DATASET}", DATASET[:6], "home/datasets/" + DATASET])
def test_what_is_built_on_a_dataset(ask: Asking, wanted: str) -> None:
    graph = json.loads(ask(wanted, "--descendants", "--json"))
    assert set(graph["nodes"]) == {DATASET, SFT, REWARD, DPO, GRPO}
    counted = ask(wanted, "--descendants").splitlines()[-1]
    assert counted.startswith(f"made from {DATASET}: ")
    assert sorted(counted.partition(": ")[2].split(", ")) == ["1 dpo", "1 grpo", "1 reward", "1 sft"]


def test_what_is_built_on_a_dataset_that_is_gone(ask: Asking, store: ArtifactStore) -> None:
    shutil.rmtree(store.folder("dataset", DATASET))
    shutil.rmtree(store.folder("checkpoint", SFT))
    graph = LineageGraph.model_validate_json(ask(DATASET[:8], "--descendants", "--json"))
    assert set(graph.nodes) == {DATASET, SFT, REWARD, DPO, GRPO}
    assert {name for name, node in graph.nodes.items() if node.state == "missing"} == {DATASET, SFT}
    said = ask(DATASET[:8], "--descendants")
    assert said.count("not in this artifact root") == 2


def test_ancestors_that_are_gone_are_told_of(ask: Asking, store: ArtifactStore) -> None:
    shutil.rmtree(store.folder("checkpoint", SFT))
    shutil.rmtree(store.folder("base", BASE))
    graph = LineageGraph.model_validate_json(ask("grpo", "--json"))
    base = graph.nodes[BASE]
    assert (base.state, base.kind, base.origin["name"]) == ("missing", "base", "model")
    assert graph.nodes[SFT].parents == {"policy": BASE, "dataset": DATASET}


def test_what_is_gone_itself_is_told_of_by_what_was_made_from_it(ask: Asking, store: ArtifactStore) -> None:
    shutil.rmtree(store.folder("checkpoint", SFT))
    graph = LineageGraph.model_validate_json(ask("sft", "--json"))
    assert (graph.root, graph.direction, graph.nodes[SFT].state) == (SFT, "ancestors", "missing")
    assert set(graph.nodes) == {SFT, BASE, DATASET}


@pytest.mark.parametrize("arguments", [(), ("--descendants",)])
def test_what_is_gone_is_not_taken_for_one_of_several_that_are_here(
    store: ArtifactStore, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    shutil.rmtree(store.folder("checkpoint", SFT))
    assert main(["lineage", "", *arguments]) == 2
    assert "matches several" in capsys.readouterr().err


def test_a_damaged_ancestor_is_told_of(ask: Asking, store: ArtifactStore) -> None:
    (store.folder("checkpoint", SFT) / MANIFEST).write_text("{")
    graph = LineageGraph.model_validate_json(ask("dpo", "--json"))
    assert (graph.nodes[SFT].state, graph.nodes[BASE].state) == ("damaged", "there")
    assert "its manifest cannot be read" in ask("dpo")


@pytest.mark.parametrize(("wanted", "rule"), [("nothing", "matches nothing"), ("", "matches several")])
def test_what_cannot_be_found_is_refused(store: ArtifactStore, wanted: str, rule: str) -> None:
    with pytest.raises(InputError, match=rule):
        descent(store, wanted)


def test_dot(ask: Asking) -> None:
    said = ask("sft", "--dot")
    assert said.startswith("digraph lineage {")
    assert f'"{BASE}" -> "{SFT}" [label="policy"];' in said
    assert said.count("->") == 2
    assert f'"dataset: rows.jsonl\\n{DATASET}"' in said


def test_mermaid(ask: Asking, store: ArtifactStore) -> None:
    shutil.rmtree(store.folder("base", BASE))
    said = ask("sft", "--mermaid").splitlines()
    assert said[0] == "flowchart LR"
    assert said[1] == f'  n0["sft<br>{SFT}"]'
    assert sum("-- policy -->" in line or "-- dataset -->" in line for line in said) == 2
    assert sum("stroke-dasharray" in line for line in said) == 1


def test_any_name_of_a_file_stays_a_label(store: ArtifactStore, ask: Asking) -> None:
    dataset = publish(store, "dataset", 1, origin={"path": 'a "b"\n<br>#c\\n.jsonl'})
    publish(store, "sft", 1, parents={"dataset": dataset.name})
    dot = ask(name_of("sft", 1), "--dot")
    assert rf'label="dataset: a \"b\" <br>#c\\n.jsonl\n{dataset.name}"' in dot
    mermaid = ask(name_of("sft", 1), "--mermaid")
    assert f'n1[("dataset: a #34;b#34; #60;br#62;#35;c#92;n.jsonl<br>{dataset.name}")]' in mermaid


class Page(HTMLParser):
    """Ids, links and tags of a page, and whether anything is loaded from elsewhere."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: D102
        for key, value in attrs:
            if key == "id" and value:
                self.ids.append(value)
            if key == "href" and value:
                (self.links if value.startswith("#") else self.loaded).append(value)
            if key == "src" and value:
                self.loaded.append(value)


def test_every_node_of_the_page_opens_its_card(ask: Asking, tmp_path: Path) -> None:
    assert str(tmp_path / "page.html") in ask("grpo", "--html", "page.html")
    text = (tmp_path / "page.html").read_text()
    page = Page(text)
    assert {f"#{name}" for name in (BASE, DATASET, SFT, REWARD, DPO, GRPO)} <= set(page.links)
    assert set(page.links) <= {f"#{name}" for name in page.ids}
    assert page.loaded == []
    assert "rows.jsonl" in text


def test_what_others_wrote_stays_text(store: ArtifactStore, ask: Asking, tmp_path: Path) -> None:
    attack = "<script>alert(1)</script>"
    publish(store, "dataset", 1, origin={"path": attack})
    publish(store, "sft", 1, parents={"dataset": name_of("dataset", 1)})
    ask(name_of("sft", 1), "--html", "page.html")
    assert attack not in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize("wanted", ["grpo", DATASET])
def test_boxes_do_not_overlap_and_arrows_go_to_the_right(store: ArtifactStore, wanted: str) -> None:
    graph = descent(store, wanted) if wanted == DATASET else ancestry(store, store.folder("checkpoint", GRPO))
    drawing = lay_out(graph)
    places = {box.node.name: (box.x, box.y) for box in drawing.boxes}
    assert len(set(places.values())) == len(graph.nodes)
    assert all(places[parent][0] < places[child][0] for child, _, parent in edges(graph))


def test_many_descendants_stay_usable(
    store: ArtifactStore, ask: Asking, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lineage_page, "_MOST_DRAWN", 3)
    monkeypatch.setattr("flows.lineage_tables._MOST_SHOWN", 3)
    assert "and 2 more; --json lists all of them" in ask(DATASET, "--descendants")
    ask(DATASET, "--descendants", "--html", "page.html")
    assert "2 more are too many to draw" in (tmp_path / "page.html").read_text()


def test_the_drawing_is_an_image_by_itself(store: ArtifactStore) -> None:
    from xml.etree import ElementTree

    root = ElementTree.fromstring(render_drawing(ancestry(store, store.folder("checkpoint", GRPO))))
    assert root.tag.endswith("svg")
    assert not root.findall(".//{*}a")


def test_the_card_of_what_is_gone_tells_its_recipe(store: ArtifactStore, ask: Asking, tmp_path: Path) -> None:
    publish(store, "sft", 1, identity=(asked := {"stage": "sft", "hyperparameters": {"learning_rate": 0.125}}),
            fingerprint=fingerprint(asked))  # fmt: skip
    publish(store, "dpo", 1, parents={"policy": name_of("sft", 1)})
    shutil.rmtree(store.folder("checkpoint", name_of("sft", 1)))
    ask(name_of("dpo", 1), "--html", "page.html")
    card = (tmp_path / "page.html").read_text().partition(f'id="{name_of("sft", 1)}"')[2].partition('class="card"')[0]
    assert "missing" in card
    assert re.search(r"learning rate.*0\.125", card, re.DOTALL)


def test_the_page_allows_nothing_from_elsewhere(ask: Asking, tmp_path: Path) -> None:
    ask("grpo", "--html", "page.html")
    assert "default-src 'none'; style-src 'unsafe-inline'" in (tmp_path / "page.html").read_text()


def test_a_page_that_cannot_be_written_is_one_message(
    store: ArtifactStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert main(["lineage", "grpo", "--html", str(tmp_path / "file" / "page.html")]) == 2
    said = capsys.readouterr()
    assert "cannot be written" in said.err
    assert (said.out, said.err.count("align: ")) == ("", 1)


def test_a_folder_is_no_file(store: ArtifactStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lineage", "grpo", "--html", str(tmp_path)]) == 2
    assert "is a folder; give the name of a file" in capsys.readouterr().err
