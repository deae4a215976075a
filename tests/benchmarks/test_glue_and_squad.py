"""Tasks of GLUE and SQuAD: files, scores, and short runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import srsly
import typer
from scipy.stats import pearsonr, spearmanr
from spacy.cli._util import app as spacy_app
from typer.testing import CliRunner

import spacy_distil.cli  # noqa: F401 (registers the commands)
from benchmarks.common import rows
from benchmarks.common.rows import ROWS
from benchmarks.glue import __main__ as glue
from benchmarks.glue import sick
from benchmarks.glue.tasks import TASKS, Row, read_rows, score, write_jsonl
from benchmarks.squad import __main__ as squad
from benchmarks.squad import split
from spacy_distil.errors import CorpusError
from spacy_distil.pairs.squad import read_squad
from tests.util import SENTENCES

BY_NAME = {task.name: task for task in TASKS}
# The first lines of each file, in GLUE's format.
LINES = {
    "CoLA": ("gj04\t1\t\tOur friends won't buy it.", Row("Our friends won't buy it.", None, "1")),
    "MNLI": (
        'index\tsentence1\tsentence2\tlabel1\tgold_label\n0\tA "quote.\tB.\tneutral\tneutral\n'
        "1\tC.\tD.\t-\t-",
        Row('A "quote.', "B.", "neutral"),
    ),
    "MRPC": (
        "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t70\t71\tHe said.\tShe said.",
        Row("He said.", "She said.", "1"),
    ),
    "STS-B": (
        "index\tgenre\tsentence1\tsentence2\tscore\n0\tmain\tA plane.\tAn airplane.\t5.000",
        Row("A plane.", "An airplane.", "5.000"),
    ),
    "SST-2": ("sentence\tlabel\nhide new secretions \t0", Row("hide new secretions ", None, "0")),
}


@pytest.mark.parametrize("name", LINES)
def test_files_of_glue(name: str, tmp_path: Path) -> None:
    text, expected = LINES[name]
    (tmp_path / "dev.tsv").write_text(text)
    assert list(read_rows(BY_NAME[name], tmp_path / "dev.tsv")) == [expected]
    write_jsonl(BY_NAME[name], [expected], tmp_path / "dev.jsonl")
    (line,) = srsly.read_jsonl(tmp_path / "dev.jsonl")
    assert line["text"] == expected.first
    if name == "STS-B":
        assert line["cats"] == {"score": 5.0}
    if name != "CoLA":
        with pytest.raises(CorpusError, match="it is not QQP in GLUE's format"):
            list(read_rows(BY_NAME["QQP"], tmp_path / "dev.tsv"))


def test_scores_of_glue() -> None:
    generator = np.random.default_rng(0)
    truth = [str(label) for label in generator.integers(0, 2, 60)]
    predicted = [
        own if generator.random() < 0.7 else str(generator.integers(0, 2)) for own in truth
    ]
    both = np.array([truth, predicted], dtype=float)
    accuracy = float((both[0] == both[1]).mean())
    assert score(BY_NAME["RTE"], truth, predicted) == pytest.approx(100 * accuracy)
    # Matthews correlation is Pearson's of two binary variables.
    expected = 100 * float(np.corrcoef(both)[0, 1])
    assert score(BY_NAME["CoLA"], truth, predicted) == pytest.approx(expected)
    hits = float((both[0] * both[1]).sum())
    precision, recall = hits / both[1].sum(), hits / both[0].sum()
    f1 = 2 * precision * recall / (precision + recall)
    assert score(BY_NAME["MRPC"], truth, predicted) == pytest.approx(50 * (f1 + accuracy))
    numbers = [str(each) for each in generator.random(60)]
    others = [str(each) for each in generator.random(60)]
    pair = list(map(float, numbers)), list(map(float, others))
    expected = 50 * (spearmanr(*pair).statistic + pearsonr(*pair).statistic)
    assert score(BY_NAME["STS-B"], numbers, others) == pytest.approx(expected)
    assert score(BY_NAME["CoLA"], ["1", "1"], ["1", "1"]) == 0
    assert score(BY_NAME["MRPC"], ["0", "0"], ["0", "0"]) == 50


def test_sick_in_the_format_of_glue(tmp_path: Path) -> None:
    header = "pair_ID\tsentence_A\tsentence_B\trelatedness_score\tentailment_judgment\n"
    for name in sick.FILES:
        (tmp_path / f"{name}.txt").write_text(f"{header}1\tA.\tB.\t4.5\tNEUTRAL\n")
    sick.main(tmp_path, tmp_path / "SICK")
    for name in ("train", "dev", "test"):
        rows = list(read_rows(BY_NAME["SICK"], tmp_path / "SICK" / f"{name}.tsv"))
        assert rows == [Row("A.", "B.", "neutral")]


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run spaCy's commands here: each process takes seconds to start."""

    def run(*parts: object) -> None:
        result = CliRunner().invoke(spacy_app, list(map(str, parts)), catch_exceptions=False)
        assert result.exit_code == 0, result.output

    monkeypatch.setattr(rows, "_spacy", run)


def invoke(main: Callable[..., Any], *options: object) -> None:
    app = typer.Typer()
    app.command()(main)
    result = CliRunner().invoke(app, list(map(str, options)), catch_exceptions=False)
    assert result.exit_code == 0, result.output


@pytest.mark.slow
@pytest.mark.usefixtures("in_this_process")
def test_a_short_run_of_glue(bert_dir: Path, tmp_path: Path) -> None:
    """A pair task with its own test set, from the TSV files to the table."""
    lines = ["index\tsentence1\tsentence2\tlabel"]
    for i, text in enumerate(SENTENCES * 2):
        lines.append(f"{i}\t{text}\t{text if i % 2 else 'No.'}\t{('neutral', 'entailment')[i % 2]}")
    (tmp_path / "data" / "SICK").mkdir(parents=True)
    for name in ("train", "dev", "test"):
        (tmp_path / "data" / "SICK" / f"{name}.tsv").write_text("\n".join(lines))
    options = ["--encoder", bert_dir, "--output", tmp_path / "out", "--layers", 1, "--pairs", 4]
    invoke(glue.main, tmp_path / "data", *options, "--epochs", 2, "--results", tmp_path / "results")
    found = json.loads((tmp_path / "results" / "glue.json").read_text())["results"]["SICK"]
    assert list(found) == list(ROWS)
    assert all(0 <= own["score"] <= 100 for own in found.values())
    assert "| int8 |" in (tmp_path / "results" / "glue.md").read_text()


@pytest.mark.slow
@pytest.mark.usefixtures("in_this_process")
def test_a_short_run_of_squad(bert_dir: Path, tmp_path: Path) -> None:
    articles = [
        {
            "paragraphs": [
                {
                    "context": text,
                    "qas": [
                        {
                            "question": "Which word is first?",
                            "answers": [{"text": text.split()[0], "answer_start": 0}],
                        },
                        {"question": "Why?", "answers": [], "is_impossible": True},
                    ],
                }
            ]
        }
        for text in SENTENCES
    ]
    (tmp_path / "all.json").write_text(json.dumps({"data": articles}))
    split.main(tmp_path / "all.json", tmp_path / "parts", train=2, dev=1)
    sizes = {
        name: len(list(read_squad(tmp_path / "parts" / f"{name}.json")))
        for name in ("train", "dev", "test")
    }
    assert sizes == {"train": 4, "dev": 2, "test": 4}
    options = ["--encoder", bert_dir, "--output", tmp_path / "out", "--layers", 1, "--words", 20]
    paths = [tmp_path / "parts" / "train.json", tmp_path / "all.json"]
    invoke(squad.main, *paths, *options, "--epochs", 2, "--results", tmp_path / "results")
    found = json.loads((tmp_path / "results" / "squad.json").read_text())["results"]
    assert list(found) == list(ROWS)
    # The first tenth of the articles chose the step, and is not scored.
    assert len(list(read_squad(tmp_path / "out" / "dev-test.json"))) == 8
