from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import spacy
from spacy.training import Corpus

from spacy_distil.errors import ConfigError
from spacy_distil.report.process import PipelineSource, Worker, WorkerError, check_pin_cores
from tests.report.stock_pipelines import Trained

TEXTS = ["One two three.", "Four five.", "Six.", "Seven."]


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    file = tmp_path / "texts.json"
    file.write_text(json.dumps(TEXTS))
    return file


@pytest.mark.slow
def test_another_interpreter_needs_spacy_alone(
    bare_python: str, trained: Trained, texts: Path, tmp_path: Path
) -> None:
    with Worker(PipelineSource(str(trained.partial), bare_python), texts, threads=1) as worker:
        assert worker.path == trained.partial
        assert [worker.run(size, since=0.0).words for size in (1, 3)] == [11, 11]
        assert len(worker.latencies(3)) == 3
        assert min(worker.latencies(9)) > 0, "more than there are texts"
        environment = worker.environment(["spacy", "no-such-package"])
        assert environment["versions"] == {"spacy": spacy.__version__, "no-such-package": None}
        reply = worker.score(trained.test, tmp_path / "out.spacy", batch_size=8, limit=10)
    nlp = spacy.load(trained.partial)
    expected = nlp.evaluate(list(Corpus(trained.test, limit=10)(nlp)))
    assert reply["scores"]["ents_f"] == expected["ents_f"]
    assert reply["scores"]["cats_macro_f"] == pytest.approx(expected["cats_macro_f"])
    assert reply["categories"] == {"labels": ["FOOD", "SPORT"], "threshold": 0.5}


@pytest.mark.slow
def test_another_interpreter_does_not_get_our_modules(
    bare_python: str, trained: Trained, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text("raise SystemExit('ours')")
    monkeypatch.setenv("PYTHONPATH", str(site))
    with pytest.raises(WorkerError, match="ours"):
        Worker(PipelineSource(str(trained.partial)), texts, threads=1)
    with Worker(PipelineSource(str(trained.partial), bare_python), texts, threads=1) as worker:
        assert worker.peak_rss_bytes() > 20e6


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="not on this system")
def test_pinned_to_cores(bare_python: str, trained: Trained, texts: Path) -> None:
    available = os.sched_getaffinity(0)
    with Worker(
        PipelineSource(str(trained.partial), bare_python), texts, threads=1, pin_cores=1
    ) as worker:
        assert os.sched_getaffinity(worker._process.pid) == {min(available)}
    check_pin_cores(len(available))
    check_pin_cores(None)
    for n in (0, len(available) + 1):
        with pytest.raises(ConfigError, match=f"pin_cores = {n}: expected 1 to {len(available)}"):
            check_pin_cores(n)


def test_no_interpreter(texts: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere/python cannot be run: No such file"):
        Worker(PipelineSource("en_pipeline", "nowhere/python"), texts, threads=1)
