"""Scores against scipy and brute force."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import spacy
from scipy.stats import spearmanr
from spacy.training import Example

from spacy_distil.errors import CorpusError
from spacy_distil.vectors.pairs import VECTOR, Pairs, relate
from spacy_distil.vectors.scoring import score_vectors, spearman


@pytest.mark.parametrize("seed", range(10))
def test_rank_correlation_with_ties(seed: int) -> None:
    rng = np.random.default_rng(seed)
    left, right = rng.integers(0, 6, size=(2, 20)) / 5
    assert spearman(left, right) == pytest.approx(spearmanr(left, right).statistic)
    assert spearman(left, np.ones(20)) == 0


def make(vector: np.ndarray, text: str, group: str, **more: object) -> Example:
    nlp = spacy.blank("en")
    doc = nlp.make_doc(text)
    doc.user_hooks["vector"] = lambda _: vector
    return relate(Example(doc, nlp.make_doc(text)), group, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(10))
def test_retrieval_by_brute_force(seed: int) -> None:
    rng, chance = np.random.default_rng(seed), random.Random(seed)
    documents = [
        make(rng.normal(size=3), f"document {i}", f"g{i}", role="document") for i in range(6)
    ]
    queries = [
        make(rng.normal(size=3), f"query {i}", f"g{chance.randrange(6)}", role="query")
        for i in range(9)
    ]
    ranks = []
    for query in queries:
        group = query.reference.user_data["distil_vectors.relation"]["group"]
        cosines = []
        for number, document in enumerate(documents):
            one, other = query.predicted.vector, document.predicted.vector
            cosines.append(
                (-(one @ other) / np.linalg.norm(one) / np.linalg.norm(other), f"g{number}")
            )
        ranks.append(1 + [name for _, name in sorted(cosines)].index(group))
    examples = [*queries, *documents, documents[0]]
    chance.shuffle(examples)
    scores = score_vectors(examples)
    assert scores["vectors_mrr"] == pytest.approx(np.mean([1 / rank for rank in ranks]))
    assert scores["vectors_recall_at_1"] == pytest.approx(np.mean([rank == 1 for rank in ranks]))
    assert "vectors_spearman" not in scores


def test_groups_without_roles_and_ties() -> None:
    one, other = np.eye(2)
    examples = [make(one, "a", "x"), make(one, "b", "x"), make(other, "c", "y")]
    assert score_vectors(examples) == {"vectors_recall_at_1": 1.0, "vectors_mrr": 1.0}
    # A constant vector finds nothing.
    examples = [make(one, text, group) for text, group in ("ax", "bx", "cy", "dy")]
    assert score_vectors(examples)["vectors_recall_at_1"] == 0


def test_scored_pairs_and_reference_vectors() -> None:
    rng = np.random.default_rng(0)
    examples = []
    cosines, scores = [], []
    for number in range(8):
        one, other = rng.normal(size=(2, 4))
        cosines.append(one @ other / np.linalg.norm(one) / np.linalg.norm(other))
        scores.append(number / 8)
        for vector in (one, other):
            examples.append(make(vector, "text", str(number), score=number / 8))
    found = score_vectors(examples)
    assert found == {"vectors_spearman": pytest.approx(spearmanr(cosines, scores).statistic)}
    for example in examples:
        example.reference.user_data[VECTOR] = 2 * example.predicted.vector
    assert score_vectors(examples)["vectors_agreement"] == pytest.approx(1)
    for example in examples:
        example.reference.user_data[VECTOR] = np.ones(7)
    assert "vectors_agreement" not in score_vectors(examples)
    assert score_vectors([]) == {}


def test_files_of_pairs(tmp_path: Path) -> None:
    """Lines end where JSON lines end, and an error names the line."""
    nlp = spacy.blank("en")
    path = tmp_path / "pairs.jsonl"
    line = {"text": "One\u2028line.", "other": "Another\u0085one.", "score": 0.5}
    path.write_text(json.dumps(line, ensure_ascii=False) + "\n\n", encoding="utf-8-sig")
    texts = [example.text for example in Pairs(path)(nlp)]
    assert texts == [line["text"], line["other"]]
    path.write_text('{"text": "a", "other": "b"}\n{"text": "a", "other": "b", "score": 2}')
    assert len(list(Pairs(path, limit=1)(nlp))) == 2
    with pytest.raises(CorpusError, match=r"line 2: .* with a \"score\" from -1 to 1"):
        list(Pairs(path)(nlp))
    path.write_bytes(b'{"text": "\xe9", "other": "b"}')
    with pytest.raises(CorpusError, match=r"cannot be read: .*line 1: byte 0xe9"):
        list(Pairs(path)(nlp))
