"""Texts for pipes that read pairs, where documents come without: each with the next one's text."""

from __future__ import annotations

from collections.abc import Sequence

from spacy.language import Language
from spacy.tokens import Doc

from spacy_distil.pairs.other import other_of
from spacy_distil.pairs.pair_pipe import DistilPair
from spacy_distil.pairs.qa_pipe import DistilQA
from spacy_distil.pairs.questions import questions_of


def give_texts(nlp: Language, docs: Sequence[Doc]) -> list[str]:
    """Let each doc name the text of the next one, for the pipes that read pairs of texts.

    Docs stay as they are for a pipe if one of them names a text for it.
    RETURNS: the names of the pipes that got texts.
    """
    found = []
    for name, pipe in nlp.pipeline:
        if isinstance(pipe, DistilPair):
            extension = pipe.cfg["other"]
            has_texts = any(other_of(doc, extension) is not None for doc in docs)
        elif isinstance(pipe, DistilQA):
            extension = pipe.cfg["questions"]
            has_texts = any(questions_of(doc, extension) for doc in docs)
        else:
            continue
        if docs and not has_texts:
            found.append(name)
            for doc, other in zip(docs, [*docs[1:], docs[0]], strict=True):
                doc._.set(extension, other.text if isinstance(pipe, DistilPair) else [other.text])
    return found
