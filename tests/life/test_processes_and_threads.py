"""One pipeline in several processes, in several threads, and in the middle of a stream."""

from __future__ import annotations

import gc
import textwrap
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import spacy

from tests.commands import run_process
from tests.life.corpus import annotations_of
from tests.util import (
    SENTENCES,
    adam,
    encoder_of,
    make_examples,
    make_nlp,
    torch_model_of,
    weights_of,
)

# Processes


@pytest.mark.slow
@pytest.mark.parametrize(("method", "engines"), [("fork", "torch onnx"), ("spawn", "torch")])
def test_heads_in_two_processes_after_training_in_the_parent(
    torch_pipeline: Path, onnx_pipeline: Path, tmp_path: Path, method: str, engines: str
) -> None:
    """A child process that waits for threads of its parent would hang."""
    pipelines = {"torch": str(torch_pipeline), "onnx": str(onnx_pipeline)}
    code = f"""
    if __name__ == "__main__":
        import multiprocessing

        import numpy as np
        import spacy
        import torch

        from tests.util import adam, make_examples

        def facts(doc):
            ents = [(ent.start, ent.end, ent.label_) for ent in doc.ents]
            return [token.tag_ for token in doc], ents

        multiprocessing.set_start_method({method!r})
        torch.set_num_threads(2)
        # Large enough for torch to share the work among its threads.
        torch.nn.Linear(512, 512)(torch.ones(2048, 512))
        for engine, path in {pipelines!r}.items():
            nlp = spacy.load(path)
            if engine == "torch":
                nlp.update(make_examples(nlp), sgd=adam())
            if engine not in {engines!r}:
                continue
            texts = [example.text for example in make_examples(nlp, 20)]
            texts = [*texts, "", *texts]
            alone = list(nlp.pipe(texts, batch_size=10))
            together = list(nlp.pipe(texts, batch_size=10, n_process=2))
            for a, b in zip(alone, together, strict=True):
                np.testing.assert_allclose(a.tensor, b.tensor, rtol=0, atol=1e-5)
                assert facts(a) == facts(b)
                assert all(abs(a.cats[label] - b.cats[label]) < 1e-4 for label in a.cats)
            print("same", len(together))
    """
    script = tmp_path / "pipe.py"  # spawned processes read it again
    script.write_text(textwrap.dedent(code))
    out = run_process(script, timeout=180, PYTHONPATH=str(Path(__file__).parents[2]))
    assert out.count("same 41") == len(engines.split())


# Threads


def test_threads_share_a_torch_pipeline(torch_pipeline: Path) -> None:
    nlp = spacy.load(torch_pipeline)
    texts = [example.text for example in make_examples(nlp, 12, start=300)]
    expected = [annotations_of(nlp(text)) for text in texts]

    def work(i: int) -> bool:
        if i % 2:
            return same_but_rounding(annotations_of(nlp(texts[i % 12])), expected[i % 12])
        found = map(annotations_of, nlp.pipe(texts, batch_size=4))
        return all(map(same_but_rounding, found, expected))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(40)))


def same_but_rounding(left: dict[str, Any], right: dict[str, Any]) -> bool:
    return (
        np.allclose(left["tensor"], right["tensor"], rtol=0, atol=1e-3)
        and left["cats"] == pytest.approx(right["cats"], abs=1e-3)
        and (left["tokens"], left["entities"]) == (right["tokens"], right["entities"])
    )


# In the middle of a stream


@contextmanager
def slow_threads(nlp: Any) -> Iterator[threading.Event]:
    """Stop other threads within the encoder until the forward pass of an update has begun, and let
    it wait for them. If no update begins, they go on after half a second.

    YIELDS: an event that is set when a thread has left the encoder.
    """
    main = threading.current_thread()
    meanwhile, through = threading.Event(), threading.Event()

    def stop(module: Any, *args: Any) -> None:
        if threading.current_thread() is not main:
            meanwhile.wait(timeout=0.5)
        elif module.training:
            meanwhile.set()
            through.wait(timeout=0.5)

    def leave(module: Any, *args: Any) -> None:
        if threading.current_thread() is not main:
            through.set()

    model = torch_model_of(nlp)
    first = next(module for name, module in model.named_modules() if name.endswith("layer.0"))
    handles = [first.register_forward_pre_hook(stop), model.register_forward_hook(leave)]
    try:
        yield through
    finally:
        for handle in handles:
            handle.remove()


def vectors(docs: Any) -> list[np.ndarray]:
    return [doc.tensor for doc in docs]


def test_a_suspended_stream_and_an_update(dropout_dir: Path) -> None:
    """Vectors that are encoded ahead have no dropout, and do not mix old and new weights."""
    nlp = make_nlp(dropout_dir, ["tagger"])
    texts = list(SENTENCES[:4])
    expected = vectors(nlp.pipe(texts))
    before = weights_of(nlp)
    with slow_threads(nlp):
        stream = nlp.pipe(texts, batch_size=2)
        found = vectors(next(stream) for _ in range(2))
        nlp.update(make_examples(nlp), sgd=adam(1e-2))
    after = weights_of(nlp)
    assert any(not np.array_equal(after[name], before[name]) for name in after)
    found += vectors(stream)
    for own, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(own, wanted, rtol=0, atol=1e-5)


def test_a_suspended_stream_and_a_step(dropout_dir: Path) -> None:
    """The stream goes on between an update and its step. The step waits for the batch that is being
    encoded.
    """
    nlp = make_nlp(dropout_dir, ["tagger"])
    texts = [*SENTENCES, SENTENCES[0]]
    expected = vectors(nlp.pipe(texts))
    stream = nlp.pipe(texts, batch_size=2)
    next(stream)
    nlp.update(make_examples(nlp), sgd=False)
    with slow_threads(nlp) as through:
        found = vectors(next(stream) for _ in range(2))  # the third batch is being encoded
        nlp.get_pipe("transformer").finish_update(adam(1e-2))
        assert through.is_set()
    found += vectors(stream)
    for own, wanted in zip(found, expected[1:], strict=True):
        np.testing.assert_allclose(own, wanted, rtol=0, atol=1e-5)


def test_a_thread_does_not_read_the_docs_of_a_memory_zone(
    bert_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are gone when the zone ends, and the thread may still be at work."""
    nlp = make_nlp(bert_dir)
    expected = [nlp(text).tensor for text in SENTENCES[2:4]]
    encoder, pipe = encoder_of(nlp), nlp.get_pipe("transformer")
    ended, found = threading.Event(), []
    predict = encoder.predict_docs

    def predict_later(docs: Any, *args: Any, **settings: Any) -> Any:
        if threading.current_thread() is not threading.main_thread():
            assert ended.wait(timeout=10)
            found.append(predict(docs, *args, **settings))
            return found[-1]
        return predict(docs, *args, **settings)

    with nlp.memory_zone():
        docs = [nlp.make_doc(text) for text in SENTENCES[:4]]
        stream = pipe.pipe(iter(docs), batch_size=2)
        monkeypatch.setattr(encoder, "predict_docs", predict_later)
        first = threading.Thread(target=lambda: next(stream))
        first.start()
        while first.is_alive() and len(pipe._ahead._running) < 2:
            time.sleep(0.01)
        del docs
    ended.set()
    first.join()
    pipe._ahead.wait()
    for own, wanted in zip(found[1], expected, strict=True):
        np.testing.assert_allclose(own, wanted, rtol=0, atol=1e-5)
    stream.close()


def test_the_garbage_collector_ends_a_memory_zone_in_the_thread_of_its_stream(
    bert_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nlp = make_nlp(bert_dir)
    encoder, pipe = encoder_of(nlp), nlp.get_pipe("transformer")
    dropped, collected = threading.Event(), threading.Event()
    predict = encoder.predict_docs

    def predict_later(docs: Any, *args: Any, **settings: Any) -> Any:
        if len(docs) == 1:  # the second batch
            assert dropped.wait(timeout=10)
            gc.collect()
            collected.set()
        return predict(docs, *args, **settings)

    def texts() -> Iterator[Any]:
        with nlp.memory_zone():
            yield from nlp.pipe(SENTENCES[:3], batch_size=2)

    monkeypatch.setattr(encoder, "predict_docs", predict_later)
    gc.collect()
    gc.disable()
    try:
        stream = texts()
        next(stream)
        cycle: list[Any] = [stream]
        cycle.append(cycle)
        del stream, cycle
        dropped.set()
        assert collected.wait(timeout=10)
    finally:
        gc.enable()
    pipe._ahead.wait()


def test_a_stream_that_is_dropped_leaves_the_pipeline_as_it_is(bert_dir: Path) -> None:
    nlp, reference = make_nlp(bert_dir, ["tagger"]), make_nlp(bert_dir, ["tagger"])
    for each in (nlp, reference):
        if each is nlp:
            next(nlp.pipe(SENTENCES, batch_size=2))
        each.update(make_examples(each), sgd=adam())
    np.testing.assert_array_equal(nlp(SENTENCES[0]).tensor, reference(SENTENCES[0]).tensor)
