from __future__ import annotations

import json
import statistics
from itertools import pairwise
from pathlib import Path

import pytest
import spacy
from PIL import Image
from spacy.training import Corpus

from spacy_distil.errors import ConfigError, CorpusError
from spacy_distil.report import benchmark
from spacy_distil.report.aggregation import aggregate
from spacy_distil.report.benchmark_table import make_tables, to_markdown
from spacy_distil.report.plot import COLOURS
from spacy_distil.report.process import PipelineSource
from spacy_distil.report.reliability.collecting import judge
from spacy_distil.report.reliability.measures import measure_pipes
from spacy_distil.report.results import Benchmark
from spacy_distil.report.scores import score_pipeline
from tests.pairs.conftest import build
from tests.report.markup import Markup
from tests.report.pictures import colours_of
from tests.report.stock_pipelines import Trained


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("benchmark") / "out"


@pytest.fixture(scope="module")
def result(trained: Trained, output: Path, bare_python: str) -> Benchmark:
    return benchmark(
        {"full": trained.full, "partial": PipelineSource(str(trained.partial), bare_python)},
        trained.test,
        output,
        batch_sizes=[4, 1],
        threads=[1],
        repeats=2,
        load_repeats=1,
        latency_texts=5,
        gold=trained.test,
        title="A title",
        command="benchmark it",
    )


@pytest.mark.slow
def test_scores_are_those_of_spacy(result: Benchmark, trained: Trained) -> None:
    keys = {"ents_p", "ents_r", "ents_f", "cats_macro_f"}
    full, partial = result.rows
    assert set(partial.scores) == keys
    assert set(full.scores) == keys | {"pos_acc", "tag_acc"}
    for row, path in ((full, trained.full), (partial, trained.partial)):
        nlp = spacy.load(path)
        expected = nlp.evaluate(list(Corpus(trained.test)(nlp)))
        means = {key: score.mean for key, score in row.scores.items()}
        assert means == pytest.approx({key: expected[key] for key in means})


@pytest.mark.slow
def test_intervals_are_those_of_compare(result: Benchmark, trained: Trained) -> None:
    for row, path in zip(result.rows, (trained.full, trained.partial), strict=True):
        assert row.scores == aggregate([score_pipeline(str(path), trained.test)])
        for score in row.scores.values():
            assert score.interval is not None
            assert score.interval[0] < score.mean < score.interval[1]


@pytest.mark.slow
def test_reliability_of_this_environment_alone(result: Benchmark, trained: Trained) -> None:
    full, partial = result.rows
    nlp = spacy.load(trained.full)
    judged = judge(nlp, list(Corpus(trained.test)(nlp)), 7)
    assert full.reliability == measure_pipes([judged], 40)
    assert {*full.reliability} == {"tagger", "morphologizer"}
    assert partial.reliability == {}


@pytest.mark.slow
def test_each_round_has_every_batch_size_and_pipelines_take_turns(result: Benchmark) -> None:
    passes = sorted(
        (one.at, one.at + one.seconds, row.name, one.batch_size)
        for row in result.rows
        for one in row.speeds[1].passes
    )
    one_round = [("full", 4), ("partial", 4), ("full", 1), ("partial", 1)]
    assert [(name, size) for _, _, name, size in passes] == one_round * 2
    assert all(end <= start for (_, end, *_), (start, *_) in pairwise(passes))


@pytest.mark.slow
def test_words_and_size(result: Benchmark, trained: Trained) -> None:
    assert result.n_texts == 40
    nlp = spacy.load(trained.full)
    assert result.n_words == sum(
        len(nlp.make_doc(example.reference.text)) for example in Corpus(trained.test)(nlp)
    )
    for row, path in zip(result.rows, (trained.full, trained.partial), strict=True):
        assert {one.words for one in row.speeds[1].passes} == {result.n_words}
        assert row.n_bytes == sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
        assert row.environment["versions"]["spacy"] == spacy.__version__


@pytest.mark.slow
def test_latency_is_over_texts_then_over_rounds(result: Benchmark) -> None:
    speed = result.rows[0].speeds[1]
    assert [len(each) for each in speed.latencies] == [5, 5]
    spread = speed.latency(50)
    assert spread is not None
    medians = [statistics.median(each) for each in speed.latencies]
    assert (spread.min, spread.max) == pytest.approx((min(medians), max(medians)))
    assert spread.median == pytest.approx(statistics.mean(medians))


@pytest.mark.slow
def test_files(result: Benchmark, output: Path) -> None:
    data = json.loads((output / "benchmark.json").read_text(encoding="utf-8"))
    assert data == json.loads(json.dumps(result.to_dict()))
    run = data["rows"][0]["runs"][0]
    assert [each["batch_size"] for each in run["words_per_second"]] == [1, 4]
    assert data["command"] == "benchmark it"
    markdown = (output / "benchmark.md").read_text(encoding="utf-8")
    assert markdown == to_markdown(result, plot="benchmark.png")
    assert markdown.startswith("### A title\n")
    assert "partial has an environment of its own: Python 3." in markdown
    assert "full has an environment" not in markdown
    speed, memory, scores, calibration = make_tables(result)
    assert [row[:2] for row in calibration.rows] == [
        ["morphologizer", "full"],
        ["morphologizer", "partial"],
        ["tagger", "full"],
        ["tagger", "partial"],
    ]
    assert calibration.rows[1][2:] == ["\N{EN DASH}"] * 6
    assert speed.header[2:4] == ["words/s, batch 1", "words/s, batch 4"]
    assert [row[:2] for row in speed.rows] == [["full", "1"], ["partial", "1"]]
    assert memory.rows[0][-1] == f"{result.rows[0].n_bytes / 1e6:,.1f}"
    assert scores.rows[1][1:3] == ["\N{EN DASH}"] * 2
    low, high = result.rows[1].scores["ents_f"].interval or (0, 0)
    assert f" [{low * 100:.1f}, {high * 100:.1f}]" in scores.rows[1][5]
    assert "brackets hold the 95% bootstrap interval over documents" in markdown
    assert colours_of(output / "benchmark.png") >= set(COLOURS[:2])
    page = Markup((output / "benchmark.html").read_text(encoding="utf-8"))
    assert {"A title", "Speed", "Scores", "Confusions of entities", "benchmark it"} <= {*page.texts}
    assert {"Calibration", "Reliability of tagger"} <= {*page.texts}


@pytest.mark.slow
def test_without_gold_the_plot_is_speed_by_batch_size(
    trained: Trained, bare_python: str, tmp_path: Path
) -> None:
    texts = tmp_path / "texts.jsonl"
    texts.write_text('{"text": "Ada beat Alan."}\n{"text": "Grace fed the soup."}\n')
    result = benchmark(
        {name: PipelineSource(str(trained.partial), bare_python) for name in ("a", "b")},
        texts,
        tmp_path / "out",
        batch_sizes=[1, 2],
        threads=[1, 2],
        repeats=1,
        load_repeats=1,
        latency_texts=0,
    )
    assert [list(row.speeds) for row in result.rows] == [[1, 2], [1, 2]]
    speed, memory = make_tables(result)
    assert [row[:2] for row in speed.rows] == [["a", "1"], ["b", "1"], ["a", "2"], ["b", "2"]]
    assert len(speed.header) == len(speed.rows[0]) == 4, "no latency was asked for"
    assert len(memory.rows) == 4
    with Image.open(tmp_path / "out" / "benchmark.png") as image:
        assert image.width > 1000, "a panel for each number of threads"
    assert colours_of(tmp_path / "out" / "benchmark.png") >= set(COLOURS[:2])
    page = Markup((tmp_path / "out" / "benchmark.html").read_text(encoding="utf-8"))
    assert page.values("aria-label").count("threads: 2") == 1
    assert page.count("details") == 0, "nothing was scored"


def test_what_cannot_work_is_said_at_once(trained: Trained, tmp_path: Path) -> None:
    one = {"a": trained.full}
    texts = tmp_path / "texts.txt"
    texts.write_text("Ada.\n")
    with pytest.raises(ConfigError, match="No pipelines to measure"):
        benchmark({}, texts)
    with pytest.raises(ConfigError, match="batch_sizes = 4,0: expected numbers of at least 1"):
        benchmark(one, texts, batch_sizes=[4, 0])
    with pytest.raises(ConfigError, match="threads = nothing"):
        benchmark(one, texts, threads=[])
    with pytest.raises(ConfigError, match="latency_texts = -1: expected 0 or more"):
        benchmark(one, texts, latency_texts=-1)
    with pytest.raises(ConfigError, match="No pipeline 'training/nowhere'"):
        benchmark({"a": "training/nowhere"}, texts)
    with pytest.raises(ConfigError, match=r"No interpreter nowhere/python"):
        benchmark({"a": PipelineSource("training/nowhere", "nowhere/python")}, texts)
    with pytest.raises(CorpusError, match="No documents at"):
        benchmark(one, tmp_path / "none.txt")
    with pytest.raises(CorpusError, match="No documents"):
        benchmark(one, texts, gold=tmp_path / "none.spacy")
    with pytest.raises(ConfigError, match="is a file: expected a directory"):
        benchmark(one, texts, texts)


def test_pipes_that_read_pairs_are_not_part_of_the_speed(
    bert_dir: Path, trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build(bert_dir).to_disk(tmp_path / "pairs")
    with pytest.raises(CorpusError):  # before any process starts
        benchmark({"pairs": tmp_path / "pairs"}, tmp_path / "none.txt")
    assert "its time is not part of words/s" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(CorpusError):
        benchmark({"a": trained.full}, tmp_path / "none.txt")
    assert "its time" not in capsys.readouterr().out
