"""How sure the pipes of a pipeline are of their predictions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from spacy.language import Language
from spacy.pipeline import TextCategorizer, TrainablePipe
from spacy.pipeline.textcat_multilabel import MultiLabel_TextCategorizer
from spacy.tokens import Doc
from thinc.api import Model

from spacy_distil.errors import ConfigError
from spacy_distil.ner.pipe import DistilNER
from spacy_distil.softmax import is_softmax, log_probabilities


def confidence(nlp: Language, doc: Doc | Iterable[Doc]) -> Any:
    """Compute the probability of each prediction of a processed doc.

    doc: a doc that `nlp` has processed, or several, which is quicker.
    RETURNS: an array for each pipe that can tell, by its name, for each doc. Of a `tagger`,
        `morphologizer`, `senter` or `trainable_lemmatizer`, (n_tokens,): of each token's label. Of
        a `distil_ner`, (n_entities,): of each entity in `doc.ents`; 0 for those that another pipe
        has set, and that this pipe finds impossible. Of a `textcat`, (1,): of the highest category.
        Of a `textcat_multilabel`, (n_categories,): of the answer, yes or no, to each of its labels.
    """
    if isinstance(doc, Doc):
        return confidence(nlp, [doc])[0]
    docs = list(doc)
    found: list[dict[str, np.ndarray]] = [{} for _ in docs]
    for name, pipe in nlp.pipeline:
        for own, value in zip(found, _confidence_of(pipe, docs), strict=False):
            own[name] = value
    return found


def _confidence_of(pipe: Any, docs: list[Doc]) -> list[np.ndarray]:
    """Compute the confidence of one pipe for each doc. RETURNS: [] if the pipe cannot tell."""
    if isinstance(pipe, DistilNER):
        return pipe.probabilities(docs)
    if isinstance(pipe, TextCategorizer):
        return [_of_categories(pipe, doc) for doc in docs]
    model = getattr(pipe, "model", None)
    if not isinstance(pipe, TrainablePipe) or not isinstance(model, Model) or not is_softmax(model):
        return []
    filled = [doc for doc in docs if len(doc)]
    logs = iter(log_probabilities(model, filled) if filled else [])
    return [
        np.exp(model.ops.to_numpy(next(logs).max(axis=1)).astype("d")) if len(doc) else np.zeros(0)
        for doc in docs
    ]


def _of_categories(pipe: TextCategorizer, doc: Doc) -> np.ndarray:
    missing = [label for label in pipe.labels if label not in doc.cats]
    if missing:
        raise ConfigError(
            f"doc.cats lacks {missing[0]!r}, a category of {pipe.name!r}: expected docs that this "
            "pipeline has processed."
        )
    scores = np.array([doc.cats[label] for label in pipe.labels])
    if isinstance(pipe, MultiLabel_TextCategorizer):
        return np.where(scores >= pipe.cfg["threshold"], scores, 1 - scores)
    return scores.max(keepdims=True)
