"""Formats whose pairs lie in several rows: replies that are each labelled good or bad, and trees of ranked replies.

Which rows become a pair is decided by what they say, not by where they stand: the rows of a file in another order give
the same pairs.
"""

from collections.abc import Sequence
from math import inf
from typing import Any

from models.fingerprint import canonical_json, fingerprint
from tasks.data.formats.reading import Paired, Reading, Sample, filled, require
from tasks.data.problems import problem, shown, text
from tasks.data.readers import Row
from tasks.data.turns import Message, role_of

_COUNTED = ("prompt", "tools", "kind")
"""What two replies must share to be a pair."""
_BEST_AND_WORST = "of the replies to one prompt the best by `rank` is chosen and the worst rejected"


def unpaired(reading: Reading) -> Reading:
    """The reading of single replies with a label, from the reading of prompt and completion."""
    words = f"{reading.words}; `label` says whether it is good, and a good and a bad reply to one prompt are a pair"
    return Reading(
        words, (*reading.columns, "label"), reading.read, "unpaired",
        native=reading.native, choice="format: unpaired", combine=pair_up,
    )  # fmt: skip


def is_unpaired(sample: Sample) -> bool:
    """Whether rows have a label that says whether their one reply is good."""
    return isinstance(sample.first("label"), bool | int)


def label_of(row: Row) -> bool:
    """Whether a row's reply is good.

    Raises:
        RowProblem: its label says neither.
    """
    require(row, ("label",), "a single reply needs a label")
    if row["label"] not in (0, 1) or not isinstance(row["label"], int | float):
        raise problem("label", f"got {shown(row['label'])}", "it is true or false", "correct it or remove the row")
    return bool(row["label"])


def pair_up(rows: Sequence[Row]) -> Paired:
    """Pairs of good and bad replies to equal prompts: the first of each, the second of each, as their texts are sorted.

    Args:
        rows: Rows with `prompt`, `completion` and `label`.
    """
    groups: dict[str, tuple[dict[str, Row], dict[str, Row]]] = {}
    for row in rows:
        shared = canonical_json([row.get(key) for key in _COUNTED])
        side = groups.setdefault(shared, ({}, {}))[0 if row["label"] else 1]
        side.setdefault(canonical_json(row["completion"]), row)
    pairs = [
        _pair(good[1], bad[1])
        for sides in groups.values()
        for good, bad in zip(*(sorted(side.items()) for side in sides), strict=False)
        if good[0] != bad[0]
    ]
    return Paired(pairs, len(rows) - 2 * len(pairs))


def _pair(good: Row, bad: Row) -> Row:
    shared = {key: value for key, value in good.items() if key not in ("completion", "label")}
    return shared | {"chosen": good["completion"], "rejected": bad["completion"]}


def tree_readings(sample: Sample) -> list[Reading]:
    """The reading of ranked trees, a tree a row or a message a row."""
    root = sample.first("prompt")
    if isinstance(root, dict) and "replies" in root:
        words = f"`prompt` is the root of a tree of `replies`: {_BEST_AND_WORST}"
        return [Reading(words, ("prompt",), tree_nodes, "reply_tree", combine=best_and_worst)]
    if sample.has("message_id", "text", "role", "rank") and "parent_id" in sample.names:
        words = f"`message_id` and `parent_id` join the rows to trees: {_BEST_AND_WORST}"
        columns = ("message_id", "parent_id", "text", "role", "rank")
        return [Reading(words, columns, message_node, "reply_tree", combine=best_and_worst)]
    return []


def message_node(row: Row) -> Row:
    """A row that is one message of a tree."""
    require(row, ("message_id", "text", "role"), "a message of a tree needs them")
    parent = text(row["parent_id"], "parent_id") if filled(row.get("parent_id")) else None
    return {"nodes": [_node(row, text(row["message_id"], "message_id"), parent, "")]}


def tree_nodes(row: Row) -> Row:
    """A row that is a whole tree, as its messages."""
    require(row, ("prompt",), "a tree needs its root")
    nodes: list[Row] = []
    todo: list[tuple[Any, str | None, str]] = [(row["prompt"], None, "prompt")]
    while todo:
        value, parent, place = todo.pop()
        if not isinstance(value, dict):
            raise problem(place, f"got {shown(value)}", "it must be a message with text and replies", "correct it")
        own = value.get("message_id") or fingerprint([parent, value.get("text"), place])
        nodes.append(_node(value, text(own, f"{place}.message_id"), parent, f"{place}."))
        replies = value.get("replies") or []
        if not isinstance(replies, list):
            raise problem(f"{place}.replies", f"got {shown(replies)}", "it must be a list of messages", "correct it")
        todo += [(reply, own, f"{place}.replies[{index}]") for index, reply in enumerate(replies)]
    return {"nodes": nodes}


def _node(value: Row, own: str, parent: Any, place: str) -> Row:
    role, rank = role_of(value), value.get("rank")
    if role not in ("user", "assistant"):
        raise problem(
            f"{place}role", f"got {shown(value.get('role'))}", "it is prompter or assistant", "correct it", "roles"
        )
    if rank is not None and not _is_rank(rank):
        raise problem(
            f"{place}rank", f"got {shown(rank)}", "a rank is a finite number, of which the lowest is best", "correct it"
        )
    said = {"role": role, "content": text(value.get("text"), f"{place}text")}
    return {"id": own, "parent": parent, "message": said, "rank": rank}


def _is_rank(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < inf


def best_and_worst(rows: Sequence[Row]) -> Paired:
    """The best and the worst of the replies to each prompt of the trees, after all turns before.

    Prompts without two replies of different ranks are left out.

    Args:
        rows: Messages of the trees under `nodes`, and `kind`.

    Raises:
        RowProblem: two messages have one id.
    """
    nodes = _by_id(rows)
    replies: dict[str, list[Row]] = {}
    for node in nodes.values():
        if node["message"]["role"] == "assistant" and node["rank"] is not None and filled(node["parent"]):
            replies.setdefault(node["parent"], []).append(node)
    pairs = []
    for parent, ranked in replies.items():
        ranked.sort(key=lambda node: (node["rank"], node["message"]["content"]))
        best, worst = ranked[0], ranked[-1]
        history = _history(nodes, parent)
        if best["rank"] != worst["rank"] and best["message"] != worst["message"] and history:
            pairs.append(
                {"prompt": history, "chosen": [best["message"]], "rejected": [worst["message"]], "kind": best["kind"]}
            )
    return Paired(pairs, len(nodes) - 2 * len(pairs))


def _by_id(rows: Sequence[Row]) -> dict[str, Row]:
    """The messages of all trees; one that occurs again is kept once."""
    nodes: dict[str, Row] = {}
    for row in rows:
        for node in row["nodes"]:
            known = nodes.setdefault(node["id"], node | {"kind": row["kind"]})
            if known != node | {"kind": row["kind"]}:
                rule = "messages of a tree need ids of their own"
                raise problem("message_id", f"two messages are {shown(node['id'])}", rule, "correct one of them")
    return nodes


def _history(nodes: dict[str, Row], last: str) -> list[Message]:
    """The turns from a tree's root to the prompt `last`; none where one of them is missing, or the last is a reply."""
    turns: list[Message] = []
    seen: set[str] = set()
    at: str | None = last
    while at is not None:
        if at not in nodes or at in seen:
            return []
        seen.add(at)
        turns.append(nodes[at]["message"])
        at = nodes[at]["parent"] or None
    return turns[::-1] if turns[0]["role"] == "user" else []
