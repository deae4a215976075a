"""Count what a conversion drops, repairs or cannot use, with examples.

Each document has notes of its own, so the counts are about the documents that are kept.
"""

from __future__ import annotations

from collections.abc import Iterable

MAX_EXAMPLES = 5


class Notes:
    """Counts by reason, with the first few examples of each."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.examples: dict[str, list[str]] = {}

    def add(self, reason: str, example: str, count: int = 1) -> None:
        self.counts[reason] = self.counts.get(reason, 0) + count
        examples = self.examples.setdefault(reason, [])
        if len(examples) < MAX_EXAMPLES:
            examples.append(example)

    def add_many(self, reason: str, examples: Iterable[str]) -> None:
        for example in examples:
            self.add(reason, example)

    def merge(self, other: Notes) -> None:
        """Add the counts of other notes, and their examples while there is room."""
        for reason, count in other.counts.items():
            self.counts[reason] = self.counts.get(reason, 0) + count
            examples = self.examples.setdefault(reason, [])
            examples += other.examples[reason][: MAX_EXAMPLES - len(examples)]

    def to_dict(self) -> dict[str, dict[str, int | list[str]]]:
        return {
            reason: {"count": count, "examples": self.examples[reason]}
            for reason, count in self.counts.items()
        }
