from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import spacy

from spacy_distil.errors import ConfigError
from spacy_distil.report.process import (
    Load,
    Pass,
    PipelineSource,
    Worker,
    WorkerError,
    cpu_environment,
)
from spacy_distil.report.speed import Speed
from tests.own_code import write_own_pipeline

TEXTS = ["One two three.", "Four five.", ""]
N_WORDS = 4 + 3
# A pipeline package that prints while it loads, from Python and from below it.
NOISY = """
import os, torch
from spacy.util import load_model_from_init_py

def load(**overrides):
    print("threads", torch.get_num_threads(), "gpu", torch.cuda.is_available())
    os.system("echo from below")
    return load_model_from_init_py(__file__, **overrides)
"""


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    file = tmp_path / "texts.json"
    file.write_text(json.dumps(TEXTS))
    return file


@pytest.fixture
def noisy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    package = tmp_path / "site" / "en_noisy"
    package.mkdir(parents=True)
    nlp = spacy.blank("en")
    nlp.to_disk(package / "en_noisy-0.0.1")
    (package / "__init__.py").write_text(NOISY)
    (package / "meta.json").write_text(
        json.dumps({**nlp.meta, "name": "noisy", "version": "0.0.1"})
    )
    info = package.parent / "en_noisy-0.0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: en_noisy\nVersion: 0.0.1\n")
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    return "en_noisy"


@pytest.mark.slow
def test_a_process_measures_until_it_is_killed(noisy: str, texts: Path) -> None:
    with Worker(PipelineSource(noisy), texts, threads=1) as worker:
        load = worker.load
        assert load.cold_start_seconds > load.load_seconds + load.first_doc_seconds > 0
        # The output of the pipeline is no answer. The pipeline runs on the CPU, in one thread.
        assert worker.run(8, since=0.0).words == N_WORDS
        assert worker.peak_rss_bytes() > 20e6
        worker._process.kill()
        worker._process.wait()
        said = r"(?s)Measuring en_noisy failed.*code -9.*threads 1 gpu False.*"
        with pytest.raises(WorkerError, match=said) as error:
            worker.run(8, since=0.0)
        assert "from below" in str(error.value)


@pytest.mark.slow
def test_a_process_says_in_one_sentence_why_it_ended(
    tmp_path: Path, texts: Path, bare_python: str
) -> None:
    broken = tmp_path / "broken"
    nlp = spacy.blank("en")
    nlp.to_disk(broken)
    (broken / "config.cfg").write_text("[nlp\n")
    with pytest.raises(ConfigError, match=r"^.*broken cannot be loaded: .*Config validation.*$"):
        Worker(PipelineSource(str(broken), bare_python), texts, threads=1)
    own = tmp_path / "own"
    code = write_own_pipeline(own)
    with pytest.raises(ConfigError, match=r"^.*own needs the factory 'own_\w+', which nothing"):
        Worker(PipelineSource(str(own), bare_python), texts, threads=1)
    with pytest.raises(ConfigError, match=r"^\S* cannot import spaCy or none\.py: FileNotFound"):
        Worker(PipelineSource(str(own), bare_python, "none.py"), texts, threads=1)
    with Worker(PipelineSource(str(own), bare_python, str(code)), texts, threads=1) as worker:
        assert worker.run(8, since=0.0).words == N_WORDS
    code.write_text(code.read_text().replace("return doc", "raise LookupError('no such')"))
    with pytest.raises(
        WorkerError, match=r"^Measuring .*own failed: LookupError: no such \(.*own\.py, line \d+\)$"
    ):
        Worker(PipelineSource(str(own), bare_python, str(code)), texts, threads=1)


def test_threads_and_devices_by_environment() -> None:
    environment = cpu_environment(3)
    assert environment["CUDA_VISIBLE_DEVICES"] == ""
    assert environment["OMP_NUM_THREADS"] == environment["RAYON_NUM_THREADS"] == "3"


def test_summary_is_of_the_median() -> None:
    speed = Speed(
        loads=[Load(3.0, 1.0, 0.1), Load(9.0, 8.0, 0.1), Load(4.0, 2.0, 0.1)],
        warm_up=Pass(at=0.0, words=100, seconds=100.0, batch_size=8),
        passes=[Pass(1.0, 100, 1.0, 8), Pass(2.0, 100, 0.5, 8), Pass(3.0, 100, 4.0, 8)],
        peak_rss_bytes=7,
    )
    summary = speed.summary()
    raw = summary.pop("raw")
    assert summary == {
        "words_per_second": 100.0,
        "words_per_second_min": 25.0,
        "words_per_second_max": 200.0,
        "peak_rss_bytes": 7,
        "load_seconds": 2.0,
        "cold_start_seconds": 4.0,
    }
    assert raw["passes"][1] == {"at": 2.0, "words": 100, "seconds": 0.5, "batch_size": 8}


def test_peak_memory_is_the_process_s_own() -> None:
    """Without the memory of the parent process, which getrusage's ru_maxrss would include."""
    worker = Path(__file__).parents[2] / "spacy_distil" / "report" / "worker.py"
    child = f"import runpy; print(runpy.run_path({str(worker)!r})['peak_rss']())"
    parent = (
        "import subprocess, sys\n"
        "held = bytearray(300_000_000)\n"
        "held[::4096] = b'1' * len(held[::4096])\n"
        f"subprocess.run([sys.executable, '-c', {child!r}], check=True)\n"
    )
    out = subprocess.run([sys.executable, "-c", parent], capture_output=True, text=True, check=True)
    assert 1e6 < int(out.stdout) < 100e6
