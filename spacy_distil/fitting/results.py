"""Results of a search: all students, each with its costs and scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from spacy_distil.fitting.candidates import Candidate
from spacy_distil.fitting.costs import Costs
from spacy_distil.fitting.settings import FitSettings


@dataclass
class Student:
    """A candidate, and what is known of it.

    costs: None before it is measured.
    misses: the limits that it misses.
    history: step of the training to the best score up to there, on the development documents.
    seconds: of its training.
    scores: of the quantized student on the development documents, by spaCy's name.
    fate: why it was not trained, or not to the end.
    is_tried: whether the search considers it; earlier ones in the same directory may have had more.
    """

    candidate: Candidate
    costs: Costs | None = None
    misses: list[str] = field(default_factory=list)
    history: dict[int, float] = field(default_factory=dict)
    seconds: float = 0.0
    scores: dict[str, float] = field(default_factory=dict)
    fate: str = ""
    is_tried: bool = True

    @property
    def step(self) -> int:
        """The step that it has been trained to; 0 for none."""
        return max(self.history, default=0)

    @property
    def score(self) -> float:
        """The best score up to now. Raises ValueError without any training."""
        return self.history[max(self.history)]

    def score_at(self, step: int) -> float:
        """Return the best score up to a step, or up to the next one at which it was recorded."""
        return self.history[min(each for each in self.history if each >= step)]

    def known_costs(self) -> Costs:
        """Return the costs of a student that has been measured."""
        assert self.costs is not None
        return self.costs

    def to_dict(self) -> dict[str, Any]:
        """Everything for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Student:
        """Read what `to_dict` returns, after JSON."""
        own = dict(values)
        costs = own.pop("costs")
        history = {int(step): score for step, score in own.pop("history").items()}
        return cls(
            Candidate(**own.pop("candidate")),
            costs=None if costs is None else Costs(**costs),
            history=history,
            **own,
        )


@dataclass(frozen=True)
class Fit:
    """A finished search.

    path: directory of the pipeline: the chosen student, or the family.
    best: name of the chosen student.
    students: all that were possible, by name.
    teacher, teacher_score: its path, and its score on the development documents; 0 if unknown.
    steps: of a whole training.
    output: directory of the search.
    """

    path: Path
    best: str
    students: dict[str, Student]
    teacher: str
    teacher_score: float
    settings: FitSettings
    steps: int
    output: Path
    machine: dict[str, Any]
    date: str
    command: str

    def to_dict(self) -> dict[str, Any]:
        """Everything for JSON."""
        return {
            "best": self.best,
            "teacher": self.teacher,
            "teacher_score": self.teacher_score,
            "steps": self.steps,
            "settings": self.settings.model_dump(),
            "students": {name: each.to_dict() for name, each in self.students.items()},
            "machine": self.machine,
            "date": self.date,
            "command": self.command,
        }
