"""A search from start to end, stopped, resumed, refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import spacy
from spacy.tokens import DocBin
from spacy.training import Corpus
from thinc.api import Config
from typer.testing import CliRunner

import spacy_distil
from spacy_distil.cli import distil_cli
from spacy_distil.errors import ConfigError, CorpusError
from spacy_distil.fitting import run as run_module
from spacy_distil.fitting.costs import Costs
from spacy_distil.fitting.report import commands, make_tables
from spacy_distil.fitting.results import Fit, Student
from spacy_distil.pipelines import count_bytes
from spacy_distil.report.layout import MISSING
from tests.distillation.pipeline.util import student_config, trained_transitions
from tests.fitting.conftest import PIPES, settings
from tests.report.markup import Markup
from tests.util import encoder_of


@pytest.fixture(scope="module")
def found(
    teacher: Path, corpus: Path, bert_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Fit:
    """A search of four students, of which two are trained to the end."""
    config = student_config(bert_dir, corpus, PIPES)
    config["distillation"]["stages"] = {"soft": {"share": 1.0}}
    config["fit"] = settings(
        layers=[1, 2], ffn=[1.0], width=[1.0], embedding_bits=[8, 4], family=True
    )
    lines: list[str] = []
    output = tmp_path_factory.mktemp("fitted") / "out"
    fit = spacy_distil.fit(teacher, config, output, command="fit it", log=lines.append)
    (output / "lines.json").write_text(json.dumps(lines))
    return fit


@pytest.mark.slow
def test_students_and_their_fates(found: Fit) -> None:
    assert {*found.students} == {
        *("layers-1", "layers-1-4bits", "layers-2", "layers-2-4bits", "cnn-8")
    }
    chosen = found.students[found.best]
    assert chosen.fate == "chosen"
    assert chosen.step == found.steps == 12
    for name, student in found.students.items():
        assert student.costs is not None
        assert student.costs.is_timed != name.endswith("4bits")
        assert all(cost > 0 for cost in student.costs.to_dict().values() if cost is not None)
        if name.endswith("4bits"):
            assert student.fate == f"as {name.removesuffix('-4bits')}, which fits"
            assert not student.history
            whole = found.students[name.removesuffix("-4bits")].known_costs()
            assert student.known_costs().size_mb < whole.size_mb
        elif student.step < 12:
            assert student.fate == "dropped after step 4"
            # Another one is better and not dearer.
            assert any(
                other.history and other.history[4] >= student.score and other.known_costs().is_timed
                for other in found.students.values()
            )
    assert Student.from_dict(json.loads(json.dumps(chosen.to_dict()))) == chosen


@pytest.mark.slow
def test_scores_are_those_of_spacy(found: Fit, teacher: Path, corpus: Path) -> None:
    nlp = spacy.load(teacher)
    scores = nlp.evaluate(list(Corpus(corpus / "dev.spacy")(nlp)))
    expected = 0.5 * scores["tag_acc"] + 0.5 * scores["ents_f"]
    assert found.teacher_score == pytest.approx(expected)
    chosen = found.students[found.best]
    place = found.output / "candidates" / chosen.candidate.training / "run" / "model-best"
    own = spacy.load(place)
    scores = own.evaluate(list(Corpus(corpus / "dev.spacy")(own)))
    assert chosen.score == pytest.approx(0.5 * scores["tag_acc"] + 0.5 * scores["ents_f"])


@pytest.mark.slow
def test_what_is_written(found: Fit) -> None:
    nlp = spacy.load(found.output / "best")
    assert [token.tag_ for token in nlp("Ann visited New Rome .")]
    report = json.loads((found.output / "fit.json").read_text())
    assert report == json.loads(json.dumps(found.to_dict()))
    (table,) = make_tables(found)
    assert [row[0] for row in table.rows] == sorted(
        found.students, key=lambda name: found.students[name].known_costs().words_per_second or 0
    )
    assert (found.output / "fit.md").read_text().count("\n| layers-") == 4
    page = Markup((found.output / "fit.html").read_text(encoding="utf8"))
    assert {"A student for a budget", "Students", "fit it"} <= {*page.texts}
    assert [values["aria-label"] for tag, values in page.elements if tag == "svg"] == [
        "Score against speed"
    ]
    # The teacher's outputs are computed once.
    caches = [path for path in found.output.rglob("cache") if path.is_dir()]
    assert caches == [found.output / "cache"]
    # Nothing is left of what was only timed.
    assert not [path for path in found.output.iterdir() if path.name.startswith(".")]
    lines = json.loads((found.output / "lines.json").read_text())
    assert any(line.startswith("5 students are possible") for line in lines)
    assert any(line.endswith(" to go") for line in lines)


@pytest.mark.slow
def test_the_commands_train_others_to_the_end(found: Fit) -> None:
    for training, command in commands(found).items():
        words = command.split()
        assert words[:5] == ["python", "-m", "spacy", "distil", "pipeline"]
        result = CliRunner().invoke(distil_cli, words[4:])
        assert result.exit_code == 0, result.output
        run = found.output / "candidates" / training / "run"
        assert json.loads((run / "distil.json").read_text())["steps"] == 12
        break


@pytest.mark.slow
def test_a_finished_search_is_not_repeated(
    found: Fit, teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "measure_costs", None)
    monkeypatch.setattr(run_module, "teach", None)
    config = Config().from_disk(found.output / "distil.cfg", interpolate=False)
    again = spacy_distil.fit(teacher, config, found.output, resume=True)
    assert again.students == found.students
    assert (again.best, again.path) == (found.best, found.path)
    with pytest.raises(ConfigError, match="Go on with the run in it with --resume"):
        spacy_distil.fit(teacher, config, found.output)
    config["fit"]["batch_size"] = 2
    with pytest.raises(ConfigError, match=r"have changed: fit\.batch_size"):
        spacy_distil.fit(teacher, config, found.output, resume=True)


def let_costs_be(monkeypatch: pytest.MonkeyPatch, **rates: float) -> None:
    """Set words/s by name, so that a test of the search needs no minutes of timing."""

    def measure(pipelines: Mapping[str, Path], *_: Any, **__: Any) -> dict[str, Costs]:
        return {name: Costs(10, rates[name.replace("-", "_")], 1, 2, 200) for name in pipelines}

    monkeypatch.setattr(run_module, "measure_costs", measure)


def measure_sizes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Measure sizes alone. RETURNS: the pipelines that would be timed, as the search goes on."""
    timed: list[str] = []

    def measure(pipelines: Mapping[str, Path], *_: Any, **__: Any) -> dict[str, Costs]:
        timed.extend(pipelines)
        return {
            name: Costs(count_bytes(path) / 1e6, 9, 1, 2, 99) for name, path in pipelines.items()
        }

    monkeypatch.setattr(run_module, "measure_costs", measure)
    return timed


class Killed(Exception):
    """Ends a search as a kill would."""


@pytest.mark.slow
def test_a_search_that_was_killed_goes_on(
    teacher: Path, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config["fit"] = settings(layers=[1, 2], ffn=[1.0], width=[1.0], cnn=[])
    let_costs_be(monkeypatch, layers_1=200, layers_2=100)
    calls: list[Any] = []
    teach = run_module.teach

    def train(*arguments: Any, **options: Any) -> Any:
        calls.append(options["until"])
        if len(calls) in (2, 4):
            raise Killed
        return teach(*arguments, **options)

    monkeypatch.setattr(run_module, "teach", train)
    for _ in range(2):
        with pytest.raises(Killed):
            spacy_distil.fit(teacher, config, tmp_path / "out", resume=True)
    # What was measured is not measured again.
    monkeypatch.setattr(run_module.FitRun, "_build", None)
    fit = spacy_distil.fit(teacher, config, tmp_path / "out", resume=True)
    assert fit.students[fit.best].step == 12
    assert calls == [4, 4, 4, 12, 12]
    monkeypatch.undo()
    let_costs_be(monkeypatch, layers_1=200, layers_2=100)
    whole = spacy_distil.fit(teacher, config, tmp_path / "whole")
    assert [each.history for each in fit.students.values()] == [
        each.history for each in whole.students.values()
    ]


@pytest.mark.slow
def test_a_trained_student_that_misses_the_budget(
    teacher: Path, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next best takes its place, if there is one."""
    config["fit"] = settings(
        words_per_second=90, layers=[1, 2], ffn=[1.0], width=[1.0], cnn=[], rungs=[]
    )
    rates = {"layers-1": [200.0, 100.0, 50.0], "layers-2": [100.0, 80.0, 80.0]}
    timed: list[str] = []

    def measure(pipelines: Mapping[str, Path], *_: Any, **__: Any) -> dict[str, Costs]:
        timed.extend(pipelines)
        return {name: Costs(1, rates[name].pop(0), 1, 2, 99) for name in pipelines}

    monkeypatch.setattr(run_module, "measure_costs", measure)
    monkeypatch.setattr(run_module.FitRun, "_rank", lambda self, names: sorted(names, reverse=True))
    fit = spacy_distil.fit(teacher, config, tmp_path / "out")
    assert timed == ["layers-1", "layers-2", "layers-2", "layers-1"]
    assert fit.best == "layers-1"
    assert fit.students["layers-2"].fate == "misses the budget after its training"
    assert encoder_of(spacy.load(tmp_path / "out" / "best")).n_layers == 1


@pytest.mark.slow
def test_nothing_fits(
    teacher: Path, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config["fit"] = settings(words_per_second=300, layers=[1, 2], ffn=[1.0], width=[1.0], cnn=[])
    let_costs_be(monkeypatch, layers_1=200, layers_2=100)
    with pytest.raises(ConfigError, match=r"nearest, layers-1, has 200 words/s \(at least 300\)"):
        spacy_distil.fit(teacher, config, tmp_path / "out")
    assert not (tmp_path / "out" / "best").exists()
    # A larger budget needs no more timing of the candidates.
    monkeypatch.setattr(run_module.FitRun, "_build", None)
    config["fit"]["words_per_second"] = 150
    first = spacy_distil.fit(teacher, config, tmp_path / "out", resume=True)
    assert first.best == "layers-1"
    assert first.students["layers-2"].fate == "does not fit"
    # And with another one, what was trained is not trained again.
    taught: list[str] = []
    teach = run_module.teach

    def count(nlp: Any, path: Path, output: Path, **options: Any) -> Any:
        taught.append(output.parent.name)
        return teach(nlp, path, output, **options)

    monkeypatch.setattr(run_module, "teach", count)
    config["fit"]["words_per_second"] = 50
    second = spacy_distil.fit(teacher, config, tmp_path / "out", resume=True)
    assert {*taught} == {"layers-2"}
    assert second.students["layers-1"].history == first.students["layers-1"].history
    scores = {name: each.score for name, each in second.students.items() if each.step == 12}
    assert second.best == max(scores, key=lambda name: scores[name])


@pytest.mark.slow
def test_the_cheapest_that_keeps_enough(
    teacher: Path,
    config: Config,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    let_costs_be(monkeypatch, layers_1=200, layers_2=100)
    config["fit"] = {
        "min_retention": 0.01,
        "layers": [1, 2],
        "ffn": [1.0],
        "width": [1.0],
        "cnn": [],
        "rungs": [],
    }
    fit = spacy_distil.fit(teacher, config, tmp_path / "out")
    assert fit.best == "layers-1"
    assert fit.students["layers-1"].score >= 0.01 * fit.teacher_score
    assert fit.path == tmp_path / "out" / "best"
    assert not fit.students["layers-2"].history, "the fastest is enough"
    config["fit"]["min_retention"] = 1.9
    fit = spacy_distil.fit(teacher, config, tmp_path / "other")
    assert "No student keeps 190.0% of the teacher's score" in capsys.readouterr().out
    assert fit.students[fit.best].fate == "chosen, but its score is too low"
    page = (tmp_path / "other" / "fit.html").read_text(encoding="utf8")
    assert "but its score is too low" in page
    assert (tmp_path / "other" / "best" / "meta.json").is_file()


def test_mistakes(teacher: Path, config: Config, tmp_path: Path) -> None:
    config["fit"] = {}
    with pytest.raises(ConfigError, match="There is no budget: set one limit or more"):
        spacy_distil.fit(teacher, config, tmp_path / "out")
    for overrides, message in (
        ({"fit.layers": [9]}, r"fit\.layers = \[9\].* has 2 layers"),
        ({"fit.layers": [], "fit.cnn": []}, "There is no student to try"),
        ({"fit.texts": str(tmp_path / "blank.txt")}, "has no text in it"),
    ):
        (tmp_path / "blank.txt").write_text(" \n\t\n", encoding="utf8")
        with pytest.raises((ConfigError, CorpusError), match=message):
            spacy_distil.fit(
                teacher, config, tmp_path / "mistakes", overrides={"fit.size_mb": 9, **overrides}
            )
        shutil.rmtree(tmp_path / "mistakes", ignore_errors=True)
    with pytest.raises(ConfigError, match="percentile = 95 is of the latency"):
        spacy_distil.fit(
            teacher,
            config,
            tmp_path / "out",
            overrides={"fit.size_mb": 9, "fit.percentile": 95},
        )
    pairs = Config(config).copy()
    pairs["components"]["pair"] = {"factory": "distil_pair"}
    for overrides in ({"fit.words_per_second": 1}, {"fit.min_retention": 0.9, "fit.size_mb": 9}):
        with pytest.raises(ConfigError, match="'pair' reads two texts together"):
            spacy_distil.fit(teacher, pairs, tmp_path / "out", overrides=overrides)
    with pytest.raises(ConfigError, match=r"fit\.latency_ms = -1"):
        spacy_distil.fit(teacher, config, tmp_path / "out", overrides={"fit.latency_ms": -1})
    assert not (tmp_path / "out").exists()
    result = CliRunner().invoke(distil_cli, ["fit", str(teacher), "none.cfg", "-o", "out"])
    assert result.exit_code == 1
    assert "none.cfg does not exist" in " ".join(result.output.split())


@pytest.mark.slow
def test_text_alone_and_the_command(
    teacher: Path, config: Config, corpus: Path, tmp_path: Path
) -> None:
    """Without annotation, the score is agreement with the teacher."""
    for name in ("train", "dev"):
        config["corpora"][name]["path"] = None
    texts = "\n".join(
        doc.text
        for doc in DocBin().from_disk(corpus / "train.spacy").get_docs(spacy.blank("en").vocab)
    )
    (tmp_path / "texts.txt").write_text(texts, encoding="utf8")
    config["corpora"]["text"]["path"] = str(tmp_path / "texts.txt")
    config["distillation"]["held_out"] = 2
    config["fit"] = {"texts": str(tmp_path / "texts.txt"), "ffn": [1.0], "width": [1.0], "cnn": []}
    config.to_disk(tmp_path / "student.cfg")
    arguments = ["fit", teacher, tmp_path / "student.cfg", "-o", tmp_path / "out"]
    options = ["--words-per-second", "1", "--fit.layers", "[1]"]
    result = CliRunner().invoke(distil_cli, [*map(str, arguments), *options])
    assert result.exit_code == 0, result.output
    assert "Saved layers-1 to" in " ".join(result.output.split())
    report = json.loads((tmp_path / "out" / "fit.json").read_text())
    assert report["teacher_score"] == pytest.approx(1.0)
    shutil.rmtree(tmp_path / "out")


@pytest.mark.slow
def test_a_teacher_of_another_kind(
    bert_dir: Path,
    corpus: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Entities alone, of a CNN that gives the student no layers: the config's encoder is cut."""
    measure_sizes(monkeypatch)
    trained_transitions("ner").to_disk(tmp_path / "teacher")
    config = student_config(bert_dir, corpus, ["distil_ner"])
    config["distillation"] |= {"stages": {"soft": {"share": 1.0}}, "student": {"heads": 2}}
    config["training"]["score_weights"] = {"ents_f": 1.0}
    config["fit"] = settings(cnn=[], rungs=[], size_mb=0.3, pieces=[None])
    fit = spacy_distil.fit(tmp_path / "teacher", config, tmp_path / "out")
    printed = " ".join(capsys.readouterr().out.split())
    assert "Students cannot start from the teacher's layers" in printed
    assert "heads: not used" in printed
    assert {*fit.students} == {"layers-1", "layers-1-4bits", "layers-2", "layers-2-4bits"}
    chosen = fit.students[fit.best]
    assert encoder_of(spacy.load(fit.output / "best")).n_layers == chosen.candidate.layers


@pytest.mark.slow
def test_a_size_is_known_without_timing(
    teacher: Path, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The least size is looked for first. Then what is too large is not timed."""
    timed = measure_sizes(monkeypatch)
    config["fit"] = settings(size_mb=0.001, layers=[1, 2], ffn=[1.0], width=[1.0], cnn=[])
    with pytest.raises(ConfigError, match=r"nearest, layers-1-4bits, has .* \(at most 0\.001\)"):
        spacy_distil.fit(teacher, config, tmp_path / "out")
    assert not timed
    state = json.loads((tmp_path / "out" / "distil.json").read_text())["students"]
    sizes = {name: each["costs"]["size_mb"] for name, each in state.items()}
    assert sizes["layers-1-4bits"] < sizes["layers-1"] < sizes["layers-2"]
    config["fit"]["size_mb"] = (sizes["layers-2-4bits"] + sizes["layers-2"]) / 2
    config["fit"]["rungs"] = []
    fit = spacy_distil.fit(teacher, config, tmp_path / "out", resume=True)
    assert timed[:2] == ["layers-1", "layers-2-4bits"]
    assert timed[2:] == [fit.best], "the chosen one once more"
    assert not fit.students["layers-2"].known_costs().is_timed
    (table,) = make_tables(fit)
    fates = {row[0]: (row[1] == MISSING, row[-1]) for row in table.rows}
    assert fates["layers-2"] == (True, "does not fit")
    assert fates["layers-1-4bits"] == (True, "as layers-1, which fits")
