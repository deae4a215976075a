"""The real treebank, if it is at hand."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import spacy

from scripts.corpus import GENRES, Dataset, count, make_corpus, read_ewt

DATA = os.environ.get("SPACY_DISTIL_DATA", "")
EWT = Path(DATA) / "ewt"

needs_ewt = pytest.mark.skipif(
    not (DATA and EWT.is_dir()),
    reason="SPACY_DISTIL_DATA does not name a directory with ewt/ in it",
)


@needs_ewt
@pytest.mark.slow
def test_counts_of_the_real_treebank() -> None:
    corpus = read_ewt(EWT, spacy.blank("en"))
    counts = {split: count(docs) for split, docs in corpus.docs.items()}
    assert [c["docs"] for c in counts.values()] == [540, 318, 316]
    assert [c["sentences"] for c in counts.values()] == [12544, 2001, 2077]
    entities = [sum(c["entities"].values()) for c in counts.values()]
    # Of the 7,005 of train three begin inside a word of the treebank ("@Ryan") and are left
    # missing; the sentences that are split differently are aligned by their document's characters.
    assert entities == [7002, 966, 1088]
    assert corpus.notes["train"].counts["entities that do not fit the words, left missing"] == 3
    assert counts["test"]["cats"]["weblog"] == 14
    assert corpus.notes["train"].counts["sentences that are missing from the entity file"] == 1
    assert "sentences whose entities are left missing" not in corpus.notes["train"].counts
    for split, docs in corpus.docs.items():
        texts = []
        for line in (EWT / f"en_ewt-ud-{split}.conllu").read_text(encoding="utf8").splitlines():
            if line.startswith("# text = "):
                texts.append(line.removeprefix("# text = ").strip())
        found = [sent.text.strip() for doc in docs for sent in doc.sents]
        different = [pair for pair in zip(found, texts, strict=True) if pair[0] != pair[1]]
        # One no-break space of test is read as a space.
        assert len(different) == (1 if split == "test" else 0)
        assert all(
            ent.start >= ent.sent.start and ent.end <= ent.sent.end
            for doc in docs
            for ent in doc.ents
        )


@needs_ewt
@pytest.mark.slow
def test_limit_takes_documents_of_every_genre(tmp_path: Path) -> None:
    summary = make_corpus(Dataset.ewt, tmp_path, assets=EWT, limit=60)
    assert summary["splits"]["train"]["docs"] == 60
    assert set(summary["splits"]["train"]["cats"]) == set(GENRES)
    assert all(summary["splits"]["train"]["cats"].values())
    assert all(summary["layers"].values())
