from __future__ import annotations

import gc
import json
import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import spacy
from spacy.language import Language
from spacy.tokens import Doc, DocBin
from spacy.training import Example

import benchmarks.memory.__main__ as memory
from benchmarks.common.options import choose_keys
from benchmarks.common.spacy_transformers_twin import make_twin, write_encoder
from benchmarks.memory import passes
from benchmarks.memory.__main__ import INT8, SUBJECTS, THEIRS, TORCH
from benchmarks.memory.passes import PassSample, PipelineMemory, Workload, growth, make_texts
from spacy_distil.errors import ConfigError
from spacy_distil.report.process import WorkerError
from tests.util import WIDTH, make_examples

DASH = "\N{EN DASH}"
# Width of the vectors that the component below writes. They are by far the largest part of a doc.
WIDE = 20_000


@Language.component("write_wide_vectors")
def write_wide_vectors(doc: Doc) -> Doc:
    doc.tensor = np.ones((len(doc), WIDE), dtype="f")
    return doc


def samples(*megabytes: float, tokens: int = 1000) -> list[PassSample]:
    """One after each document of `tokens` tokens."""
    return [PassSample(i, i * tokens, round(mb * 1e6)) for i, mb in enumerate(megabytes, start=1)]


def memory_of(
    dropped: list[PassSample], kept: list[PassSample], *, peak: float = 500, arrays: int = 0
) -> PipelineMemory:
    """peak: in MB."""
    return PipelineMemory(
        loaded_bytes=0,
        dropped=dropped,
        zones=[],
        kept=kept,
        peak_bytes=round(peak * 1e6),
        array_bytes=arrays,
        seconds=[1.0, 0.0, 1.0],
    )


# Arithmetic

KEPT = [PassSample(0, 0, 0), PassSample(1, 1, 1)]


def test_bytes_per_token() -> None:
    kept = [PassSample(0, 0, 400_000_000), PassSample(10, 1000, 402_000_000)]
    one = memory_of(samples(1), kept, arrays=1000 * 1536)
    assert one.bytes_per_token == 2000
    assert one.array_bytes_per_token == 1536


def test_verdicts() -> None:
    kept = [PassSample(0, 0, 100_000_000), PassSample(9, 1000, 101_000_000)]
    twice = [kept[0], PassSample(9, 1000, 102_000_000)]
    flat = memory_of(samples(10, 100, 104, 104), kept, peak=120)
    theirs = memory_of(samples(10, 100, 110, 110), twice, peak=120)
    assert flat.growth == pytest.approx(0.04)
    found = {TORCH: flat, THEIRS: theirs}
    summary = memory.summarize(found)
    assert [summary[key]["flat"] for key in found] == [True, False]
    assert summary[TORCH]["within_theirs"] is True
    assert summary[TORCH]["zones_flat"] is None
    assert summary[TORCH]["kept"][1] == {"n_docs": 9, "n_tokens": 1000, "rss_bytes": 101_000_000}
    dropped, all_kept = memory.make_tables(found)
    name, other = SUBJECTS[TORCH][0], SUBJECTS[THEIRS][0]
    assert dropped.rows == [
        [name, "100.0", "104.0", "+4.0%", "yes", "120.0", "yes"],
        [other, "100.0", "110.0", "+10.0%", "no", "120.0", DASH],
    ]
    assert all_kept.rows == [
        [name, "1,000", "0.50", "0", "101.0"],
        [other, "2,000", DASH, "0", "102.0"],
    ]


def test_more_at_the_end_or_at_most_is_above() -> None:
    theirs = memory_of(samples(100), KEPT, peak=120)
    assert memory_of(samples(100), KEPT, peak=120).is_within(theirs)
    assert not memory_of(samples(101), KEPT, peak=120).is_within(theirs)
    assert not memory_of(samples(100), KEPT, peak=121).is_within(theirs)


def test_without_theirs_nothing_is_compared() -> None:
    found = {INT8: memory_of(samples(1), KEPT)}
    dropped, kept = memory.make_tables(found)
    assert dropped.rows[0][-1] == kept.rows[0][2] == DASH
    assert memory.summarize(found)[INT8]["within_theirs"] is None


def test_the_vocab_is_full_after_a_quarter() -> None:
    texts = list(passes.repeat_texts([f"Text {i}." for i in range(100)], 40))
    assert len(texts) == 40
    assert set(texts[:10]) == set(texts)
    few = list(passes.repeat_texts(["a", "b", "c"], 40))
    assert few[:4] == ["a", "b", "c", "a"]


def choose_subjects(keys: str) -> list[str]:
    return choose_keys(keys, list(SUBJECTS), option="subjects")


def test_subjects_by_key() -> None:
    assert choose_subjects("") == [TORCH, INT8, THEIRS]
    assert choose_subjects("theirs, torch") == [TORCH, THEIRS]
    with pytest.raises(ConfigError, match="--subjects bert: expected some of torch, int8, theirs"):
        choose_subjects("bert")


def test_growth_is_of_the_last_quarter_against_the_second() -> None:
    assert growth([1, 1, 100, 100, 300, 300, 110, 110]) == pytest.approx(0.1)
    assert growth([5]) == 0


def test_every_text_is_another_one() -> None:
    texts = list(make_texts(["a b", "c"], 1000))
    assert len(set(texts)) == 1000
    assert texts[2].startswith("a b ")


def test_the_last_sample_is_shown() -> None:
    taken = [PassSample(n * 1000, 0, 10**6 * n) for n in range(1, 101)]
    table = memory.make_sample_table(taken)
    assert len(table.rows) == 20
    assert table.rows[-1] == ["100,000", "100.0"]


# Measuring


@pytest.fixture
def nlp() -> Iterator[Language]:
    """As in the process that measures, garbage is not searched for among loaded objects."""
    nlp = spacy.blank("en")
    gc.freeze()
    yield nlp
    gc.unfreeze()


def test_docs_that_are_kept_and_docs_that_are_not(nlp: Language) -> None:
    nlp.add_pipe("write_wide_vectors")
    texts = ["one two three four five"] * 160  # 400 kB each
    dropped = passes.sample(nlp, texts, every=4, batch_size=8)
    docs, kept = passes.keep_all(nlp, texts, batch_size=8)
    assert [each[:2] for each in dropped[:2]] == [(4, 20), (8, 40)]
    assert kept[1][:2] == dropped[-1][:2] == (160, 800)
    one = memory_of(dropped, kept, arrays=passes.count_array_bytes(docs))
    assert one.array_bytes_per_token == 4 * WIDE
    assert one.bytes_per_token == pytest.approx(4 * WIDE, rel=0.1)
    assert dropped[-1].rss_bytes - dropped[0].rss_bytes < one.array_bytes / 4


def test_the_end_is_sampled(nlp: Language) -> None:
    taken = passes.sample(nlp, ["a b"] * 7, every=3, batch_size=2)
    assert [one[:2] for one in taken] == [(3, 6), (6, 12), (7, 14)]


def test_zones_forget_their_words(nlp: Language) -> None:
    texts = make_texts(["one two", "three"], 7)
    taken = passes.sample_zones(nlp, texts, zone=3, batch_size=2)
    assert [one.n_docs for one in taken] == [3, 6, 7]
    assert taken[-1].n_tokens == 4 * 3 + 3 * 2
    assert "Word5" not in nlp.vocab.strings
    assert passes.sample_zones(nlp, [], zone=3, batch_size=2) == []


def test_a_view_keeps_all_of_its_array() -> None:
    nlp = spacy.blank("en")
    docs = [nlp.make_doc("a b"), nlp.make_doc("c"), nlp.make_doc("")]
    batch = np.zeros((10, 4), dtype="f")
    docs[0].tensor, docs[1].tensor = batch[:2], batch[2:3]
    assert passes.count_array_bytes(docs) == batch.nbytes
    docs[1].tensor = batch[2:3].copy()
    assert passes.count_array_bytes(docs) == batch.nbytes + 16


@pytest.mark.slow
def test_arrays_of_spacy_transformers(torch_pipeline: Path, tmp_path: Path) -> None:
    pytest.importorskip("spacy_transformers")
    ours = spacy.load(torch_pipeline)
    encoder = write_encoder(torch_pipeline / "transformer", tmp_path / "encoder")
    twin: Any = make_twin(ours, encoder, make_examples(ours))
    short, long = "Ann visited Rome.", "We like the unbelievable pizza of Oslo."
    (alone,) = twin.pipe([short])
    first, second = twin.pipe([short, long])
    gc.collect()
    # In a batch, both are padded to the longer one.
    rows = second._.trf_data.model_output.last_hidden_state.shape[1]
    assert alone._.trf_data.model_output.last_hidden_state.shape[1] < rows
    states, pooled = 4 * 2 * rows * WIDTH, 4 * 2 * WIDTH
    held = passes.count_array_bytes([first])
    assert held > states + pooled
    assert held < 1.5 * (states + pooled)
    assert passes.count_array_bytes([first, second]) < 1.2 * held
    assert passes.count_array_bytes([first, alone]) > 1.2 * held
    doc = ours(short)
    assert passes.count_array_bytes([doc]) == doc.tensor.nbytes == 4 * len(doc) * WIDTH


# The whole


class Fatal(list):
    """Kills the process that unpickles it."""

    def __reduce__(self) -> Any:
        return os._exit, (9,)


@pytest.mark.slow
def test_a_process_that_is_killed() -> None:
    workload = Workload(Fatal(), n_docs=1000, zone_docs=0, zone=1, batch_size=1)
    with pytest.raises(WorkerError, match=r"that ran some/pipeline was killed.* 1,000 documents"):
        passes.measure_in_process("some/pipeline", workload)


@pytest.mark.slow
def test_whole_run(torch_pipeline: Path, tmp_path: Path) -> None:
    docs = tmp_path / "docs.spacy"
    examples: list[Example] = make_examples(spacy.blank("en"))
    DocBin(docs=[example.reference for example in examples]).to_disk(docs)
    compared = find_spec("spacy_transformers") is not None
    with mock.patch.dict(os.environ):
        memory.main(
            str(torch_pipeline),
            docs,
            subjects="torch,theirs" if compared else "torch",
            n_docs=40,
            zone_docs=20,
            zone=5,
            batch_size=4,
            threads=1,
            work=tmp_path / "work",
            output=tmp_path,
        )
    saved = json.loads((tmp_path / "memory.json").read_text(encoding="utf-8"))
    text = (tmp_path / "memory.md").read_text(encoding="utf-8")
    assert [*saved["pipelines"]] == ([TORCH, THEIRS] if compared else [TORCH])
    for one in saved["pipelines"].values():
        assert f"| {one['title']} |" in text
        assert [len(one[name]) for name in ("dropped", "zones", "kept")] == [40, 4, 2]
        assert one["peak_bytes"] >= max(each["rss_bytes"] for each in one["dropped"])
        assert one["loaded_bytes"] > 1e6
    ours = saved["pipelines"][TORCH]
    assert ours["kept"][-1]["n_tokens"] == 40 * 6
    assert ours["array_bytes_per_token"] == 4 * WIDTH
    assert "40 documents, none kept" in text
    assert "20 documents in zones of 5" in text
    if compared:
        assert saved["pipelines"][THEIRS]["array_bytes_per_token"] > 4 * WIDTH
        assert isinstance(ours["within_theirs"], bool)
