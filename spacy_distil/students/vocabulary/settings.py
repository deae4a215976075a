"""The settings of a student's vocabulary, in the configs of both distillations."""

from __future__ import annotations

from spacy_distil.runs.settings import Count, Section


class VocabularySettings(Section):
    """Which of the teacher's pieces the student gets. Without either setting, all.

    size: number of pieces, the most frequent ones of the run's text.
    min_count: how often a piece must occur there.
    """

    size: Count | None = None
    min_count: Count | None = None

    @property
    def is_pruned(self) -> bool:
        """Whether any pieces are dropped."""
        return self.size is not None or self.min_count is not None


# All of the teacher's pieces.
WHOLE = VocabularySettings()
