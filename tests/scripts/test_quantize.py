"""scripts.quantize."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import spacy
from spacy.tokens import DocBin

from project.finished import FINISHED
from scripts import quantize
from spacy_distil.errors import ConfigError
from tests.util import adam, encoder_of, make_examples, make_nlp

FP32 = ("--precision", "fp32")


@pytest.fixture
def pipelines(bert_dir: Path, tmp_path: Path) -> Path:
    """Two seeds as scripts.train leaves them; the second has learned more."""
    directory = tmp_path / "student"
    nlp = make_nlp(bert_dir, ["tagger"])
    examples, optimizer = make_examples(nlp), adam(5e-3)
    for seed, updates in enumerate((1, 20)):
        for _ in range(updates):
            nlp.update(examples, sgd=optimizer)
        (directory / f"seed-{seed}").mkdir(parents=True)
        nlp.to_disk(directory / f"seed-{seed}" / "model-best")
    return directory


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "dev.spacy"
    examples = make_examples(spacy.blank("en"))
    DocBin(docs=[example.reference for example in examples]).to_disk(path)
    return path


def run(pipelines: Path, corpus: Path, options: tuple[str, ...], seeds: str = "0,1") -> Path:
    """Run the script; returns where it writes to."""
    output = pipelines.parent / "quantized"
    context = type("Context", (), {"args": list(options)})()
    reports, source = output.with_name("reports"), [f"student={pipelines}"]
    quantize.main(context, output, corpus, source, reports, seeds=seeds)
    return output


@pytest.mark.slow
@pytest.mark.usefixtures("in_process")
def test_each_seed_is_quantized_once(
    pipelines: Path, corpus: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    output = run(pipelines, corpus, FP32)
    scores = []
    for seed in (0, 1):
        report = json.loads((output.with_name("reports") / f"seed-{seed}.json").read_text())
        scores.append(report["agreement"]["candidate_scores"]["tag_acc"])
        assert report["precision"] == "fp32"
        assert report["agreement"]["n_docs"] == 16
        assert report["agreement"]["lowest"]["agreement"] == 1
        calibration = json.loads(
            (output.with_name("reports") / f"seed-{seed}-calibration.json").read_text()
        )
        (tagger,) = calibration["pipes"]
        calibrated = spacy.load(output / f"seed-{seed}" / "model-best")
        expected = pytest.approx(tagger["temperatures"])
        assert calibrated.meta["calibration"] == {"tagger": expected}
        assert not (output / f"seed-{seed}" / "quantized").exists()
    assert scores[0] < scores[1]
    best = spacy.load(output / "best")
    assert best.meta["performance"]["tag_acc"] == scores[1]
    assert encoder_of(best).settings.engine == "onnx"
    text = "Ann visited Rome."
    trained = spacy.load(pipelines / "seed-1" / "model-best")
    assert [token.tag_ for token in best(text)] == [token.tag_ for token in trained(text)]

    # Killed before the second seed had finished: only that one is quantized again.
    times = [path.stat().st_mtime_ns for path in graphs(output)]
    (output / "seed-1" / FINISHED).unlink()
    capfd.readouterr()
    run(pipelines, corpus, FP32)
    assert "seed-0 is quantized already" in capfd.readouterr().out.replace("\n", " ")
    again = [path.stat().st_mtime_ns for path in graphs(output)]
    assert again[0] == times[0]
    assert again[1] != times[1]

    # Other documents: what was checked on the old ones does not count.
    corpus.write_bytes(b"no documents")
    capfd.readouterr()
    with pytest.raises(SystemExit) as stopped:
        run(pipelines, corpus, FP32, seeds="0")
    assert stopped.value.code == 1
    assert "Traceback" not in capfd.readouterr().err
    assert not (output / "seed-0").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("in_process")
def test_without_anything_to_calibrate(
    bert_dir: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / "student" / "seed-0"
    directory.mkdir(parents=True)
    make_nlp(bert_dir, ["ner"]).to_disk(directory / "model-best")
    output = run(tmp_path / "student", corpus, FP32, seeds="0")
    assert "No pipe of" in " ".join(capsys.readouterr().out.split())
    assert "calibration" not in spacy.load(output / "best").meta
    assert [each.name for each in output.with_name("reports").iterdir()] == ["seed-0.json"]


def scored(directory: Path, *scores: float) -> Path:
    """Seeds with these scores on the development documents."""
    for seed, score in enumerate(scores):
        best = directory / f"seed-{seed}" / "model-best"
        best.mkdir(parents=True)
        weights = "[training.score_weights]\nents_f = 1.0\nents_p = null\n"
        (best / "config.cfg").write_text(f"[training]\n\n{weights}")
        (best / "meta.json").write_text(json.dumps({"performance": {"ents_f": score}}))
    return directory


def test_the_best_on_dev_is_packaged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sources = {
        "distilled": scored(tmp_path / "distilled", 0.3, 0.35),
        "student": scored(tmp_path / "student", 0.39, 0.2),
    }
    assert quantize.choose(sources, "best", [0, 1]) == sources["student"]
    told = " ".join(capsys.readouterr().out.split())
    assert "Packaged: student." in told
    assert "distilled 35.0%, student 39.0%" in told
    assert "⚠" in told
    assert "did not help" in told
    # The best of the seeds that were asked for.
    assert quantize.choose(sources, "best", [1]) == sources["distilled"]
    assert "⚠" not in capsys.readouterr().out
    # As told, whatever it scores: but it is said.
    assert quantize.choose(sources, "distilled", [0, 1]) == sources["distilled"]
    told = " ".join(capsys.readouterr().out.split())
    assert "⚠ Packaged: distilled." in told
    assert "would take student" in told
    with pytest.raises(ConfigError, match="packaged = 'cnn': expected one of best, distilled, stu"):
        quantize.choose(sources, "cnn", [0])


@pytest.mark.parametrize("value", ["training/student", "=training/student", "best=x", "student="])
def test_a_source_has_a_name(value: str) -> None:
    with pytest.raises(ConfigError, match="expected NAME=PIPELINES"):
        quantize.parse_sources([value])


def graphs(output: Path) -> list[Path]:
    return [output / f"seed-{n}" / "model-best" / "transformer" / "model.onnx" for n in (0, 1)]


def test_pipelines_must_be_there(
    pipelines: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run(pipelines, corpus, (), seeds="0,7")
    printed = capsys.readouterr().out
    assert "seed-7/model-best does not exist" in " ".join(printed.split())
    assert not (pipelines.parent / "quantized").exists()
