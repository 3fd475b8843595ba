"""Rows of a source that repeat or contradict an earlier one: nearly the same words, or a pair the other way round."""

import json
from collections.abc import Iterator

from models.data_rules import DataRules, Rule
from tasks.data.identity import canonical_line, line_digest
from tasks.data.lines import Row
from tasks.data.marks import CONVERSATIONS

LOOKED_AT = 100_000
"""Rows that are looked at where what is found is kept anyway: the signatures of so many take about 100 MB."""
_SIMILARITY = 0.8
_PERMUTATIONS, _BANDS, _SEED = 128, 16, 1
_FEWEST_WORDS = 10
"""Shorter rows share most words by chance: `2 + 3` and `2 + 4`."""


class Repeats:
    """Looks at rows one after another."""

    def __init__(self, rules: DataRules, role: str) -> None:
        """Nothing was seen yet.

        Args:
            rules: What becomes of what is found.
            role: What the rows are for.
        """
        from rensa import RMinHashLSH

        self._rules = rules
        self._pairs: dict[bytes, bytes] | None = {} if role == "preference" else None
        self._seen = 0
        self._index = RMinHashLSH(_SIMILARITY, _PERMUTATIONS, _BANDS)
        self._signatures: list[object] = []

    @property
    def are_looked_for(self) -> bool:
        """Whether the next row is looked at."""
        strict = {self._rules.near_duplicate, self._rules.conflict} != {"keep"}
        return strict or self._seen < LOOKED_AT

    @property
    def remark(self) -> str:
        """What to say where rows were not looked at."""
        named = "near duplicates and conflicts" if self._pairs is not None else "near duplicates"
        return "" if self.are_looked_for else f"{named} were looked for in the first {LOOKED_AT:,} rows only"

    def of(self, line: bytes) -> Iterator[tuple[Rule, str]]:
        """What a row breaks, with what to say of it.

        Args:
            line: Its canonical JSON.
        """
        self._seen += 1
        row = json.loads(line)
        if self._is_reverse(row):
            yield "conflict", "column 'chosen': an earlier pair is its reverse; a reply is better or worse; keep one"
        similarity = self._similarity(row)
        if similarity:
            seen = f"an earlier row has mostly the same words (estimated similarity {similarity:.2f})"
            yield "near_duplicate", f"column 'prompt': {seen}; rows should differ; keep one"

    def _is_reverse(self, row: Row) -> bool:
        if self._pairs is None:
            return False
        chosen, rejected = (line_digest(canonical_line({"side": row[side]})) for side in ("chosen", "rejected"))
        prompt = canonical_line({"prompt": row["prompt"]})
        better = self._pairs.setdefault(line_digest(prompt + min(chosen, rejected) + max(chosen, rejected)), chosen)
        return better != chosen

    def _similarity(self, row: Row) -> float:
        """Of the words to those of the most similar row; 0 where none is near. A row that is near is not held."""
        from rensa import RMinHash

        words = set(spoken(row).split())
        if len(words) < _FEWEST_WORDS:
            return 0.0
        signature = RMinHash(_PERMUTATIONS, _SEED)
        signature.update(list(words))
        near = [signature.jaccard(self._signatures[found]) for found in self._index.query(signature)]
        highest = max(near, default=0.0)
        if highest >= _SIMILARITY:
            return float(highest)
        self._index.insert(len(self._signatures), signature)
        self._signatures.append(signature)
        return 0.0


def spoken(row: Row) -> str:
    """The text of all turns but system messages."""
    turns = [turn for part in CONVERSATIONS for turn in row.get(part, ()) if turn["role"] != "system"]
    return "\n".join(turn.get("content") or "" for turn in turns)
