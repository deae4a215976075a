from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import pytest
import spacy
from PIL import Image
from spacy.training import Corpus

from spacy_distil.errors import ConfigError, CorpusError
from spacy_distil.report import compare
from spacy_distil.report.aggregation import aggregate, compute_retention
from spacy_distil.report.bootstrap import percentiles
from spacy_distil.report.plot import COLOURS
from spacy_distil.report.results import Comparison
from spacy_distil.report.scores import Scores, score_pipeline
from tests.report.markup import Markup
from tests.report.pictures import colours_of
from tests.report.stock_pipelines import Trained


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("project")
    (directory / "README.md").write_text("# R\n<!-- table:start -->\n<!-- table:end -->\n")
    return directory / "metrics" / "sample"


@pytest.fixture(scope="module")
def comparison(trained: Trained, output: Path, bare_python: str) -> Comparison:
    with pytest.MonkeyPatch.context() as patch:
        # Stock pipelines need no torch.
        patch.setattr("sys.executable", bare_python)
        return compare(
            {"teacher": [trained.full, trained.seed], "student": trained.partial},
            trained.test,
            output,
            teacher="teacher",
            repeats=2,
            load_repeats=1,
            threads=1,
            title="A title",
            readme=output.parents[1] / "README.md",
            section="table",
            command="compare it",
        )


def evaluate(path: Path, test: Path) -> dict[str, Any]:
    nlp = spacy.load(path)
    return nlp.evaluate(list(Corpus(test)(nlp)))


@pytest.mark.slow
def test_rows_are_means_over_seeds(comparison: Comparison, trained: Trained) -> None:
    assert [(row.name, len(row.pipelines)) for row in comparison.rows] == [
        ("teacher", 2),
        ("student", 1),
    ]
    teacher, student = comparison.rows
    seeds = [evaluate(path, trained.test) for path in (trained.full, trained.seed)]
    for key, figure in teacher.scores.items():
        values = [seed[key] for seed in seeds]
        assert figure.seeds == values
        assert figure.mean == pytest.approx(mean(values))
        assert figure.std == pytest.approx(stdev(values))
        assert figure.interval is not None
        assert figure.interval[0] < figure.mean < figure.interval[1]
    assert student.scores["ents_f"].std is None
    assert "pos_acc" in teacher.scores
    assert "pos_acc" not in student.scores


@pytest.mark.slow
def test_retention_is_student_over_teacher(comparison: Comparison, trained: Trained) -> None:
    teacher, student = comparison.rows
    mine = evaluate(trained.partial, trained.test)
    theirs = [evaluate(path, trained.test) for path in (trained.full, trained.seed)]
    assert set(student.retention) == {"ents_f", "cats_macro_f"}
    for key, retention in student.retention.items():
        assert retention.value == pytest.approx(mine[key] / mean(one[key] for one in theirs))
        assert retention.interval is not None
        assert retention.interval[0] < retention.value < retention.interval[1]
    assert {key: kept.value for key, kept in teacher.retention.items()} == {
        "pos_acc": 1.0,
        "tag_acc": 1.0,
        "ents_f": 1.0,
        "cats_macro_f": 1.0,
    }


@pytest.mark.slow
def test_reliability_is_a_mean_over_seeds(comparison: Comparison, trained: Trained) -> None:
    teacher, student = comparison.rows
    assert {*teacher.reliability} == {"tagger", "morphologizer"}
    assert student.reliability == {}  # a bag of words, and a `ner` without probabilities
    own = teacher.reliability["tagger"]
    accuracies = [evaluate(path, trained.test)["tag_acc"] for path in (trained.full, trained.seed)]
    assert own.accuracy == pytest.approx(accuracies[0], abs=0.02)  # which counts split tokens, too
    for score in (own.ece, own.adaptive_ece, own.brier, own.log_loss):
        assert len(score.seeds) == 2
        assert score.mean == pytest.approx(mean(score.seeds))
        assert score.interval is not None
        assert score.interval[0] < score.mean < score.interval[1]


@pytest.mark.slow
def test_speed_and_size_are_of_the_first_seed(comparison: Comparison, trained: Trained) -> None:
    for row, path in zip(comparison.rows, (trained.full, trained.partial), strict=True):
        assert len(row.speed.passes) == 2
        assert row.n_bytes == sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
        assert {one.words for one in row.speed.passes} == {comparison.n_words}
    teacher, student = comparison.rows
    for row, path in ((teacher, trained.full), (student, trained.partial)):
        weights = sum(file.stat().st_size for file in path.rglob("model"))
        assert row.n_parameters * 4 == pytest.approx(weights, rel=0.02), "four bytes for each"


@pytest.mark.slow
def test_rounds_take_turns(comparison: Comparison) -> None:
    passes = sorted(
        (one.at, one.at + one.seconds, row.name)
        for row in comparison.rows
        for one in row.speed.passes
    )
    assert [name for _, _, name in passes] == ["teacher", "student"] * 2
    # One at a time: a pass has ended before the next begins, and warming up before all of them.
    assert all(end <= start for (_, end, _), (start, _, _) in pairwise(passes))
    for row in comparison.rows:
        assert row.speed.warm_up is not None
        assert row.speed.warm_up.at < passes[0][0]
        assert len(row.speed.loads) == 1
        assert row.speed.peak_rss_bytes > 50e6


@pytest.mark.slow
def test_json_has_everything(comparison: Comparison, output: Path) -> None:
    data = json.loads((output / "compare.json").read_text(encoding="utf-8"))
    assert data == json.loads(json.dumps(comparison.to_dict()))
    assert data["command"] == "compare it"
    assert data["n_docs"] == 40
    assert data["machine"]["versions"]["spacy"] == spacy.__version__
    teacher = data["rows"][0]
    assert teacher["scores"]["ents_f"]["mean"] == comparison.rows[0].scores["ents_f"].mean
    assert len(teacher["speed"]["raw"]["passes"]) == 2
    assert teacher["full_scores"][0]["ents_per_type"].keys() == {"PERSON"}


@pytest.mark.slow
def test_markdown_and_readme(comparison: Comparison, output: Path) -> None:
    markdown = (output / "compare.md").read_text(encoding="utf-8")
    assert markdown.startswith("### A title\n")
    assert "| teacher (2 seeds) |" in markdown
    readme = (output.parents[1] / "README.md").read_text(encoding="utf-8")
    section = readme.partition("<!-- table:start -->")[2].partition("<!-- table:end -->")[0]
    # Seen from the README, the plot lies elsewhere.
    assert section.strip() == markdown.strip().replace(
        "(compare.png)", "(metrics/sample/compare.png)"
    )


@pytest.mark.slow
def test_page(comparison: Comparison, output: Path) -> None:
    page = Markup((output / "compare.html").read_text(encoding="utf-8"))
    ids = page.values("id")
    assert len(set(ids)) == len(ids)
    links = {text for text in page.texts if page.texts.count(text) > 1}
    assert links >= {
        "Scores",
        "Retention: score / score of teacher, %",
        "Speed and size",
        "Calibration",
        "Accuracy against speed",
        *(f"Reliability of {each}" for each in ("morphologizer", "tagger")),
        "Where teacher and student differ most",
        *(f"Confusions of {each}" for each in ("UPOS tags", "XPOS tags", "entities", "categories")),
        "How this was measured",
        "Command line",
    }
    assert "A title" in page.texts
    assert "compare it" in page.texts
    assert "Of teacher, it is the first seed." in page.text
    assert set(comparison.verdicts) <= set(page.texts)
    assert [attrs["aria-label"] for tag, attrs in page.elements if tag == "svg"] == [
        *("UPOS acc", "XPOS acc", "NER F", "textcat macro-F"),
        *(f"Reliability and coverage of {each}" for each in ("morphologizer", "tagger")),
    ]
    assert 1 <= page.count("article") <= 10
    # Of the student, whose categories do not exclude each other, only the entities.
    assert page.count("figure") == 5


@pytest.mark.slow
def test_plot_is_a_picture_with_content(comparison: Comparison, output: Path) -> None:
    with Image.open(output / "compare.png") as image:
        assert image.width > 600
    assert colours_of(output / "compare.png") >= set(COLOURS[:2]), "a row is missing"


def make_scores(hits: list[int]) -> Scores:
    """Of documents with ten tokens each."""
    counts = np.array([(n, 10 - n, 10 - n) for n in hits])
    return Scores(
        values={"pos_acc": sum(hits) / (10 * len(hits))},
        counts={"pos": counts},
        full={},
        n_parameters=0,
        n_bytes=0,
        n_docs=len(hits),
        n_words=10 * len(hits),
    )


def test_the_interval_is_of_the_mean_over_seeds() -> None:
    """Seeds that err on different documents make a mean that moves less than each of them."""
    first, second = make_scores([2, 10] * 20), make_scores([10, 2] * 20)
    alone = aggregate([first])["pos_acc"]
    both = aggregate([first, second])["pos_acc"]
    assert alone.interval is not None
    assert alone.interval[1] - alone.interval[0] > 0.1
    assert both.interval == pytest.approx((0.6, 0.6))
    assert both.std == 0.0


def test_retention_is_paired() -> None:
    """A student that keeps nine tenths on every document keeps them on any of them."""
    teacher, student = make_scores([10, 10, 0, 10] * 10), make_scores([9, 9, 0, 9] * 10)
    retention = compute_retention([student], [teacher])["pos_acc"]
    assert retention.value == pytest.approx(0.9)
    assert retention.interval == pytest.approx((0.9, 0.9))


def test_no_retention_of_nothing() -> None:
    assert compute_retention([make_scores([1, 2])], [make_scores([0, 0])]) == {}


def test_intervals_by_hand(trained: Trained) -> None:
    """The F of resampled documents, one resample at a time."""
    scores = score_pipeline(str(trained.partial), trained.test)
    counts = scores.counts["ents"]
    rng = np.random.default_rng(7)
    samples = []
    for _ in range(2000):
        tp, fp, fn = counts[rng.integers(len(counts), size=len(counts))].sum(axis=0)
        samples.append(2 * tp / (2 * tp + fp + fn))
    low, high = percentiles(np.array(samples))
    interval = aggregate([scores])["ents_f"].interval
    assert interval == pytest.approx((low, high), abs=0.1 * (high - low))


def test_what_cannot_work_is_said_at_once(trained: Trained, tmp_path: Path) -> None:
    one = {"a": trained.full}
    with pytest.raises(ConfigError, match="teacher = 'b': expected one of the pipelines' names, a"):
        compare(one, trained.test, tmp_path / "out", teacher="b")
    for none in ({}, {"a": []}):
        with pytest.raises(ConfigError, match="No pipelines to compare"):
            compare(none, trained.test, tmp_path / "out")
    with pytest.raises(ConfigError, match="No pipeline 'training/nowhere'"):
        compare({"a": [trained.full, "training/nowhere"]}, trained.test, tmp_path / "out")
    with pytest.raises(CorpusError, match="No documents"):
        compare(one, tmp_path / "none.spacy", tmp_path / "out")
    with pytest.raises(ConfigError, match="repeats = 0: expected at least 1"):
        compare(one, trained.test, tmp_path / "out", repeats=0)
    with pytest.raises(ConfigError, match="limit = -1"):
        compare(one, trained.test, tmp_path / "out", limit=-1)
    readme = tmp_path / "README.md"
    readme.write_text("no markers")
    with pytest.raises(ConfigError, match="<!-- compare:start -->"):
        compare(one, trained.test, tmp_path / "out", readme=readme)
    with pytest.raises(ConfigError, match="is a file: expected a directory"):
        compare(one, trained.test, readme)
    assert not (tmp_path / "out").exists()
