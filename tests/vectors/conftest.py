"""Small pipelines with vectors of texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import spacy
from spacy.language import Language

from tests.util import LISTENER, SENTENCES

# Odd texts: without tokens or pieces, of other scripts, with control characters.
ODD = (
    "",
    "   ",
    "\n\t",
    "Ann\n\nvisited  Rome ",
    "😀👩‍👩‍👧 e\u0301a\u0308o\u0323 ﬁ",
    "東京 と 北京 は 大きい 都市 です。",
    "\x00\x07\u200b",
)
TEXTS = (*SENTENCES, *ODD)
TAGGER = {"@architectures": "spacy.Tagger.v2", "tok2vec": LISTENER}


def build(
    encoder: Path,
    *,
    doc_pooling: str | None = "mean",
    tagger: bool = False,
    model: dict[str, Any] | None = None,
    **settings: Any,
) -> Language:
    """A pipeline with random weights behind an encoder. settings: of the encoder."""
    nlp = spacy.blank("en")
    own = {
        "@architectures": "spacy-distil.DistilTransformer.v1",
        "name": str(encoder),
        "doc_pooling": doc_pooling,
        **settings,
    }
    nlp.add_pipe("distil_transformer", name="transformer", config={"model": own})
    if tagger:
        pipe: Any = nlp.add_pipe("tagger", config={"model": TAGGER})
        for label in ("A", "B", "C"):
            pipe.add_label(label)
    config = {} if model is None else {"model": model}
    nlp.add_pipe("distil_vectors", name="vectors", config=config)
    nlp.initialize()
    return nlp


@pytest.fixture(scope="module")
def nlp(bert_dir: Path) -> Language:
    return build(bert_dir)
