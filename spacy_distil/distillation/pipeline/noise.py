"""Noise in the documents that the student reads. The teacher has read them as they are."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Annotated

from pydantic import Field, field_validator
from spacy.tokens import Doc
from spacy.training import Example

from spacy_distil.distillation.pipeline.corpus import TransferExample, language_of
from spacy_distil.noise import KINDS, TYPOS
from spacy_distil.noise.documents import draw_words, replace_words
from spacy_distil.noise.kinds import SPACES
from spacy_distil.runs.settings import Section

Share = Annotated[float, Field(ge=0, le=1)]


class NoiseSettings(Section):
    """How noisy the documents are that the student reads.

    share: of the documents, which get one of the kinds, drawn anew each time they are read.
    rate: share of the words that change, of those that the kind can change.
    kinds: of `KINDS`, except "spaces".
    """

    share: Share = 0.0
    rate: Share = 0.15
    kinds: list[str] = Field(default_factory=lambda: [*TYPOS], min_length=1)

    @field_validator("kinds")
    @classmethod
    def _check_kinds(cls, kinds: list[str]) -> list[str]:
        known = [kind for kind in KINDS if kind != SPACES]
        for kind in kinds:
            if kind == SPACES:
                raise ValueError(
                    f"{SPACES!r} adds tokens, for which the teacher has said nothing. Expected "
                    f"kinds of {', '.join(known)}"
                )
            if kind not in known:
                raise ValueError(f"{kind!r} is no kind of noise. Kinds: {', '.join(known)}")
        return kinds


def with_noise(example: TransferExample, settings: NoiseSettings, rng: Random) -> TransferExample:
    """Return a document as the student reads it this time.

    It has the same tokens as before. So it learns for each of them, by its number, what the teacher
    says about the clean text.
    """
    if rng.random() >= settings.share:
        return example
    kind = rng.choice(settings.kinds)
    predicted, reference = example.predicted, example.reference
    places = _shared_tokens(predicted, reference)
    words = [token.text for token in predicted]
    lang = language_of(predicted) or predicted.lang_
    changed = draw_words(words, kind, settings.rate, rng, lang, only=places.keys())
    noisy = Example(
        replace_words(predicted, changed),
        replace_words(reference, {places[i]: word for i, word in changed.items()}),
    )
    return replace(example, example=noisy)


def _shared_tokens(predicted: Doc, reference: Doc) -> dict[int, int]:
    """Return the number in the reference of each token that both docs have.

    The annotation may have other tokens than the student. Their words stay clean, because both
    docs must have the same text.
    """
    starts = {(token.idx, token.text): token.i for token in reference}
    return {
        token.i: starts[token.idx, token.text]
        for token in predicted
        if (token.idx, token.text) in starts
    }
