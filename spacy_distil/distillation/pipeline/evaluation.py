"""Checking that the development documents can tell a good student from a bad one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from spacy.language import Language
from spacy.scorer import Scorer
from spacy.training import Example
from wasabi import msg

from spacy_distil.errors import ConfigError, CorpusError


def check_development(
    student: Language, examples: Sequence[Example], weights: Mapping[str, float | None]
) -> None:
    """Warn of each pipe that the development documents cannot score.

    A score of the [training.score_weights] needs annotation: without it, it is 0 for any student.

    student: initialized.
    examples: the development documents. There is at least one.
    weights: of the scores.
    Raises CorpusError if no score is possible, and ConfigError for a weight of a score that is no
        number.
    """
    weighted = {score for score, weight in weights.items() if weight}
    scores = _score_perfectly(student, examples)
    _check_numbers(scores, weights)
    possible = {score for own in scores.values() for score in weighted & own.keys() if own[score]}
    for name, own in scores.items():
        missing = (weighted & own.keys()) - possible
        if missing:
            msg.warn(
                f"The development documents have no annotation for {name}: "
                f"{', '.join(sorted(missing))} will be 0 for any student, so the best is chosen "
                "without it"
            )
    # `nlp.evaluate` itself measures the speed.
    nobodys = weighted.difference(*scores.values(), {"speed"})
    if nobodys:
        msg.warn(f"No pipe has these of the [training.score_weights]: {', '.join(sorted(nobodys))}")
    if not possible:
        names = ", ".join(sorted(weighted)) or "none has a weight above 0"
        raise CorpusError(
            "The development documents have no annotation that the student could be scored with, "
            f"so the best student could not be told from the others. Scores of "
            f"[training.score_weights]: {names}. Give annotated documents in [paths] dev, or "
            "documents that the teacher has annotated, or weights to the scores of what they are "
            "annotated with. If they are held out of the text, hold out more: give "
            "distillation.held_out a smaller number."
        )


def perfect_score(
    student: Language, examples: Sequence[Example], weights: Mapping[str, float | None]
) -> float:
    """Return the weighted score of a student that makes no mistake. For the arguments see
    `check_development`.
    """
    found: dict[str, Any] = {}
    for own in _score_perfectly(student, examples).values():
        found |= own
    return weighted_score(found, weights)


def weighted_score(scores: Mapping[str, Any], weights: Mapping[str, float | None]) -> float:
    """Weight scores as `spacy train` does to choose the best model."""
    return sum(
        float(scores.get(name) or 0.0) * weight for name, weight in weights.items() if weight
    )


def _score_perfectly(
    student: Language, examples: Sequence[Example]
) -> dict[str, Mapping[str, Any]]:
    """Score the annotation against itself: no student can do better. RETURNS: scores by pipe."""
    perfect = [Example(example.reference, example.reference) for example in examples]
    scores: dict[str, Mapping[str, Any]] = {"the tokenizer": Scorer.score_tokenization(perfect)}
    for name, pipe in student.pipeline:
        if hasattr(pipe, "score"):
            scores[name] = pipe.score(perfect)
    return scores


def _check_numbers(
    scores: Mapping[str, Mapping[str, Any]], weights: Mapping[str, float | None]
) -> None:
    """Raise ConfigError if a score with a weight, be it 0, is no number: spaCy would refuse it."""
    for name, own in scores.items():
        for score, value in own.items():
            if weights.get(score) is None or value is None or isinstance(value, int | float):
                continue
            numbers = sorted(each for each, v in own.items() if isinstance(v, int | float))
            raise ConfigError(
                f"training.score_weights.{score} = {weights[score]}: this score of {name} is a "
                f"{type(value).__name__}, which cannot be weighted. Set the weight to null, and "
                f"give one to a number: {', '.join(numbers) or 'none here'}."
            )
