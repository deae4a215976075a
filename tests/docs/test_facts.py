"""Statements of the pages about spaCy."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import spacy

from tests.util import make_nlp, registry


def test_a_doc_without_its_tensor_has_no_vector(bert_dir: Path) -> None:
    nlp = make_nlp(bert_dir)
    nlp.add_pipe("doc_cleaner", config={"attrs": {"tensor": None}})
    doc = nlp("Ann visited Rome.")
    for name in ("vector", "has_vector"):
        with pytest.raises(AttributeError):
            getattr(doc, name)


def test_what_the_quickstarts_batcher_leaves_out() -> None:
    """Documents of 2,000 tokens, and batches that come to just as many."""
    make = registry.batchers.get("spacy.batch_by_padded.v1")
    batcher = make(size=2000, buffer=256, discard_oversize=True, get_length=None)
    assert sum(map(len, batcher([range(1999)]))) == 1
    assert sum(map(len, batcher([range(2000)]))) == 0
    assert sum(map(len, batcher([range(100)] * 19))) == 19
    assert sum(map(len, batcher([range(100)] * 20))) == 0
    # So it is written.
    template = Path(inspect.getfile(spacy)).parent / "cli/templates/quickstart_training.jinja"
    written = template.read_text(encoding="utf8")
    assert 'batch_by_padded.v1"\ndiscard_oversize = true\nsize = 2000\n' in written
