"""Sorting paragraphs again that vectors have found, against loops."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import spacy
import srsly

from benchmarks.vectors.rerank import score, write_pairs
from tests.pairs.conftest import build as build_pair
from tests.pairs.conftest import randomize
from tests.util import SENTENCES
from tests.vectors.conftest import build


@pytest.fixture
def paths(bert_dir: Path, tmp_path: Path) -> dict[str, Path]:
    build(bert_dir).to_disk(tmp_path / "vectors")
    nlp = build_pair(bert_dir)
    pipe: Any = nlp.get_pipe("pair")
    pipe.cfg["output"] = "probability"
    nlp.rename_pipe("pair", "distil_pair")
    randomize(pipe.model)
    nlp.to_disk(tmp_path / "reranker")
    paragraphs = [
        {"context": text, "qas": [{"question": f"What of {text[:12]}?", "answers": []}]}
        for text in SENTENCES
    ]
    for name, own in (("test", paragraphs[:3]), ("all", paragraphs)):
        (tmp_path / f"{name}.json").write_text(json.dumps({"data": [{"paragraphs": own}]}))
    return {name: tmp_path / name for name in ("vectors", "reranker", "test.json", "all.json")}


def test_pairs_with_the_most_similar_others(paths: dict[str, Path], tmp_path: Path) -> None:
    write_pairs(paths["vectors"], paths["all.json"], tmp_path / "pairs.jsonl", negatives=2)
    lines = list(srsly.read_jsonl(tmp_path / "pairs.jsonl"))
    assert len(lines) == 3 * len(SENTENCES)
    nlp = spacy.load(paths["vectors"])
    for i, text in enumerate(SENTENCES):
        own = lines[3 * i : 3 * i + 3]
        assert [line["other"] for line in own[:1]] == [text]
        assert [line["cats"]["relevant"] for line in own] == [1.0, 0.0, 0.0]
        question = nlp(own[0]["text"])
        others = sorted(
            (each for each in SENTENCES if each != text),
            key=lambda each: -question.similarity(nlp(each)),
        )
        assert [line["other"] for line in own[1:]] == others[:2]


def test_both_orders(paths: dict[str, Path], tmp_path: Path) -> None:
    score(*paths.values(), top=3, output=tmp_path / "out", stem="rerank")
    results = json.loads((tmp_path / "out" / "rerank.json").read_text())["results"]
    vectors, reranker = (spacy.load(paths[name]) for name in ("vectors", "reranker"))
    pipe: Any = reranker.get_pipe("distil_pair")
    ranks: dict[str, list[int]] = {"by vectors": [], "first 3 sorted again": []}
    for text in SENTENCES[:3]:
        question = f"What of {text[:12]}?"
        doc = vectors(question)
        order = sorted(SENTENCES, key=lambda each: -doc.similarity(vectors(each)))
        found = pipe.classify((question, each) for each in order[:3])
        keys = [-next(iter(cats.values())) for cats in found]
        again = [order[i] for i in np.argsort(keys, kind="stable")] + order[3:]
        for name, own in zip(ranks, (order, again), strict=True):
            ranks[name].append(1 + own.index(text))
    for name, own in ranks.items():
        mrr = 100 * float(np.mean([1 / rank for rank in own]))
        assert results[name]["MRR"]["score"] == pytest.approx(mrr)
