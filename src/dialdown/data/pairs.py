"""Preference pairs as values and as files: what training prefers, and what it turns away from
(METHOD §8).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..cards import card
from ..errors import DialdownError
from ..files import write_text
from .reading import read_objects, whole_text


@dataclass(frozen=True)
class Pair:
    """One prompt with two continuations of it.

    Attributes:
        prompt: the text both continuations follow.
        chosen: the preferred continuation, with the whitespace it starts with; no end-of-text
            token.
        rejected: the dispreferred continuation, likewise.
    """

    prompt: str
    chosen: str
    rejected: str

    def __post_init__(self) -> None:
        """Refuse what is not text (DialdownError)."""
        for name in ("prompt", "chosen", "rejected"):
            whole_text(getattr(self, name), f"The {name} of a pair")


@dataclass(frozen=True)
class PairSet(Sequence[Pair]):
    """Pairs, a sequence of them, and how they were found.

    Attributes:
        pairs: the pairs.
        record: prompts used, mean scores, scorer, how many chosen and rejected continuations were
            steered, settings.
    """

    pairs: tuple[Pair, ...]
    record: dict[str, Any]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: Any) -> Any:
        return self.pairs[index]

    def __repr__(self) -> str:
        scorer = f", by {self.record['scorer']}" if "scorer" in self.record else ""
        return f"PairSet({len(self.pairs):,} pairs{scorer})"

    def _repr_html_(self) -> str:
        heads = ("prompt", "chosen", "rejected")
        first = [(pair.prompt, pair.chosen, pair.rejected) for pair in self.pairs[:3]]
        title = f"{len(self.pairs):,} preference pairs, the first {len(first)} below"
        facts = {name: fact for name, fact in self.record.items() if name != "settings"}
        return card(title, facts, rows=[heads, *first])

    def save(self, path: str | Path) -> None:
        """Write JSON lines: the record first, then one pair a line."""
        lines = [{"record": self.record}, *(asdict(pair) for pair in self.pairs)]
        write_text(
            Path(path), "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        )

    @classmethod
    def load(cls, path: str | Path) -> PairSet:
        """Read what `save` wrote, or plain JSON lines with prompt, chosen and rejected.

        Raises:
            DialdownError: the file is missing, or a line is not a pair.
        """
        rows = [*read_objects(Path(path))]
        record = rows.pop(0)[1]["record"] if rows and "record" in rows[0][1] else {}
        if not isinstance(record, dict):
            raise DialdownError(
                f"The record in {path} is not an object: leave its first line out, or make the "
                "pairs again."
            )
        return cls(tuple(_pair(row, place) for place, row in rows), record)


def _pair(row: Mapping[str, Any], place: str) -> Pair:
    if lacking := [name for name in ("prompt", "chosen", "rejected") if name not in row]:
        raise DialdownError(
            f"{place} is not a pair, as it has no {lacking[0]!r}: write one JSON object a line "
            "with prompt, chosen and rejected."
        )
    return Pair(
        *(
            whole_text(row[name], f"The {name} in {place}")
            for name in ("prompt", "chosen", "rejected")
        )
    )
