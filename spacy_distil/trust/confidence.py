"""How sure the pipes of a pipeline are of their predictions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from spacy.language import Language
from spacy.pipeline import EditTreeLemmatizer, Tagger, TextCategorizer
from spacy.pipeline.textcat_multilabel import MultiLabel_TextCategorizer
from spacy.tokens import Doc
from spacy.util import minibatch

from spacy_distil.ner.pipe import DistilNER
from spacy_distil.softmax import is_softmax, log_probabilities

_BATCH_DOCS = 256


def confidence(nlp: Language, doc: Doc | Iterable[Doc]) -> Any:
    """Compute how probable the predictions of each pipe are for a processed doc.

    doc: a doc that `nlp` has processed, or several, which is quicker.
    RETURNS: an array for each pipe that can tell, by its name, for each doc. Of a `tagger`,
        `morphologizer`, `senter` or `trainable_lemmatizer`, (n_tokens,): of the label that the pipe
        finds best, even if another component has set another one. Of a `distil_ner`, (n_entities,):
        of each entity in `doc.ents`, whoever has set it. Of a `textcat`, (1,): of the highest
        category. Of a `textcat_multilabel`, (n_categories,): of the answer, yes or no, to each of
        its labels.
    """
    if isinstance(doc, Doc):
        return confidence(nlp, [doc])[0]
    found: list[dict[str, np.ndarray]] = []
    for docs in minibatch(doc, _BATCH_DOCS):
        batch: list[dict[str, np.ndarray]] = [{} for _ in docs]
        for name, pipe in nlp.pipeline:
            for own, value in zip(batch, _confidence_of(pipe, docs), strict=False):
                own[name] = value
        found += batch
    return found


def _confidence_of(pipe: Any, docs: list[Doc]) -> list[np.ndarray]:
    """Compute the confidence of one pipe for each doc. RETURNS: [] if the pipe cannot tell."""
    if isinstance(pipe, DistilNER):
        return pipe.probabilities(docs)
    if isinstance(pipe, TextCategorizer):
        scores = np.asarray(pipe.model.ops.to_numpy(pipe.predict(docs)), dtype="d")
        if isinstance(pipe, MultiLabel_TextCategorizer):
            return [*np.where(scores >= pipe.cfg["threshold"], scores, 1 - scores)]
        return [*scores.max(axis=1, keepdims=True)]
    if not isinstance(pipe, (Tagger, EditTreeLemmatizer)) or not is_softmax(pipe.model):
        return []
    ops = pipe.model.ops
    filled = [doc for doc in docs if len(doc)]
    logs = iter(log_probabilities(pipe.model, filled) if filled else [])
    return [
        np.exp(ops.to_numpy(next(logs).max(axis=1)).astype("d")) if len(doc) else np.zeros(0)
        for doc in docs
    ]
