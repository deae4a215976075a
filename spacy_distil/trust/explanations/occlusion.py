"""Occlusion: how much the score falls when a token is hidden (Zeiler & Fergus 2014; for text Li et
al. 2016, "Understanding Neural Networks through Representation Erasure", arXiv 1612.08220).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from spacy.language import Language
from spacy.tokens import Doc
from spacy.util import minibatch

from spacy_distil.errors import ConfigError
from spacy_distil.trust.explanations.documents import run_before
from spacy_distil.trust.explanations.scores import log_odds, predict
from spacy_distil.trust.explanations.targets import Target

# Takes the place of a hidden token, so the others keep theirs: a rune, which tokenizers read as the
# piece for unknown text, or as bytes, and spaCy's own embeddings as a word that they do not know.
HIDDEN = "\u16a0"
# Longer docs would be encoded too often: once for each token.
MOST_TOKENS = 1000
# Tokens that are processed together.
_BATCH_TOKENS = 8192
_MOST_DOCS = 128


def check_length(doc: Doc) -> None:
    """Raise ConfigError if a doc is too long."""
    if len(doc) > MOST_TOKENS:
        raise ConfigError(
            f"Occlusion processes a text once for each token, and this one has {len(doc):,} "
            f"(at most {MOST_TOKENS:,}). Explain a part of it, or use method = "
            "'integrated_gradients' if its encoder runs on the torch engine."
        )


def occlude(
    nlp: Language, doc: Doc, targets: Sequence[Target], visible: np.ndarray
) -> list[tuple[float, np.ndarray]]:
    """Hide one token after another, and compare the log-odds.

    doc: with tokens.
    targets: of one pipe.
    visible: (n_tokens,) bool, the tokens to hide. The others get 0.
    RETURNS: for each target its score, and (n_tokens,) float64: the score minus the one of the doc
        in which the token is hidden.
    """
    name = targets[0].pipe
    pipe: Any = nlp.get_pipe(name)
    hidden = np.flatnonzero(visible).tolist()
    batch_size = max(1, min(_MOST_DOCS, _BATCH_TOKENS // len(doc)))
    variants = run_before(nlp, name, _variants(doc, [None, *hidden]), batch_size=batch_size)
    scores = [
        [log_odds(logits, target.rows, target.classes)[0] for target in targets]
        for docs in minibatch(variants, size=batch_size)
        for logits in predict(pipe, list(docs))
    ]
    found = np.zeros((len(doc), len(targets)))
    found[hidden] = np.array(scores[0]) - np.array(scores[1:]).reshape(-1, len(targets))
    return [(scores[0][i], found[:, i].copy()) for i in range(len(targets))]


def _variants(doc: Doc, hidden: Sequence[int | None]) -> Iterator[Doc]:
    """Yield docs of the same tokens, each with another one hidden; None for none."""
    words = [token.text for token in doc]
    spaces = [bool(token.whitespace_) for token in doc]
    norms = {token.i: token.norm_ for token in doc if token.norm != token.lex.norm}
    for place in hidden:
        own = list(words)
        if place is not None:
            own[place] = HIDDEN
        variant = Doc(doc.vocab, words=own, spaces=spaces)
        for i, norm in norms.items():
            if i != place:
                variant[i].norm_ = norm
        yield variant
