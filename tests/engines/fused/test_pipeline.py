"""A quantized pipeline whose encoder is fused, as users have it."""

from __future__ import annotations

import multiprocessing
import os
import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import spacy
from thinc.api import NumpyOps

from spacy_distil.engines.frozen import FUSED_SETTING
from spacy_distil.engines.fused import library
from spacy_distil.export.quantize import quantize
from tests.test_light_import import run_python
from tests.util import SENTENCES, encoder_of, make_nlp, write_encoder

pytestmark = pytest.mark.skipif(
    library.load() is None, reason="has no compiled part, or a CPU without AVX-512 VNNI"
)
ODD = (
    *(" ", "\n\n \t", "a", "🙂🙂 👩\u200d👩\u200d👧", "e\u0301" * 50),
    *("\x00\x07 \u200b", "東京 は 大きい。", "word " * 3000),
)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("pipeline")
    encoder = write_encoder(directory / "encoder", "bert", width=64)
    nlp = make_nlp(encoder, ["tagger", "ner", "textcat"], window=64, overlap=8)
    nlp.to_disk(directory / "torch")
    quantize(directory / "torch", directory / "int8")
    return directory / "int8"


@pytest.fixture(scope="module")
def nlp(path: Path) -> Any:
    nlp = spacy.load(path)
    assert encoder_of(nlp).engine.runtime == "fused"
    return nlp


def results(docs: Any) -> list[Any]:
    return [doc.to_json() for doc in docs]


def vectors_of(nlp: Any, texts: Sequence[str]) -> Iterator[Any]:
    """Token vectors of each text: (n_tokens, width)."""
    for text in texts:
        yield encoder_of(nlp).predict_docs([nlp.make_doc(text)], NumpyOps())[0]


def test_vectors_are_those_of_onnx_runtime(
    nlp: Any, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FUSED_SETTING, "0")
    other = spacy.load(path)
    assert encoder_of(other).engine.runtime == "onnxruntime"
    texts = [*SENTENCES, *ODD, ""]
    pairs = zip(texts, vectors_of(nlp, texts), vectors_of(other, texts), strict=True)
    for text, vectors, expected in pairs:
        assert vectors.shape == expected.shape == (len(nlp.make_doc(text)), 64)
        # A number in the middle between two steps may be rounded to either.
        assert np.square(vectors - expected).sum() <= 1e-3 * np.square(expected).sum()


def test_a_doc_alone_in_a_batch_and_in_a_process(nlp: Any) -> None:
    texts = [*SENTENCES, *ODD] * 2
    alone = results(nlp(text) for text in texts)
    for batch_size in (1, 3, 64):
        assert results(nlp.pipe(texts, batch_size=batch_size)) == alone
    assert results(nlp.pipe(texts, n_process=2, batch_size=4)) == alone


def test_copies(nlp: Any, path: Path) -> None:
    expected = results(nlp.pipe(SENTENCES))
    other = spacy.load(path)
    other.from_bytes(nlp.to_bytes())
    for copy in (pickle.loads(pickle.dumps(nlp)), other, spacy.load(path)):
        assert encoder_of(copy).engine.runtime == "fused"
        assert results(copy.pipe(SENTENCES)) == expected


def test_threads_of_the_setting(path: Path, nlp: Any) -> None:
    expected = results(nlp.pipe(SENTENCES))
    for threads in (1, 3):
        setting = {"components.transformer.model.threads": threads}
        other = spacy.load(path, config=setting)
        assert encoder_of(other).engine.runtime == "fused"
        assert results(other.pipe(SENTENCES)) == expected


def count_threads_of(nlp: Any) -> int:
    return int(encoder_of(nlp).engine._count_threads())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="has no fork")
def test_a_forked_worker_has_one_thread(nlp: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert count_threads_of(nlp) >= 1  # in this process
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(count_threads_of, (nlp,)) == 1


@pytest.mark.parametrize("when", ["thread", "atexit"])
def test_at_the_end_of_the_interpreter(when: str, path: Path) -> None:
    """Python starts no more threads then."""
    start = "threading.Thread(target=late)" if when == "thread" else "atexit"
    out = run_python(
        f"""
        import atexit, threading, time
        import spacy

        nlp = spacy.load({str(path)!r}, config={{"components.transformer.model.threads": 3}})
        nlp("Ann visited Rome.")

        def late():
            time.sleep(1)
            print(len(nlp("Ann visited Rome. " * 300)))

        {start}.{"start()" if when == "thread" else "register(late)"}
        """,
        block=False,
    )
    assert out.split() == ["1200"]
