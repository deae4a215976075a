"""The ablation of encoder distillation: text, rows and table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import spacy
from spacy.tokens import DocBin
from spacy.training import Corpus
from spacy.util import load_config as load_spacy_config
from thinc.api import Config
from typer.testing import CliRunner

from benchmarks.common.commands import Command, choose
from benchmarks.common.sampling import SOURCES
from benchmarks.encoder_distillation import embeddings, rows, table, text
from benchmarks.encoder_distillation.rows import ADAPTED, ROWS, EncoderInputs
from project.finished import FINISHED
from spacy_distil.cli import distil_cli
from spacy_distil.distillation import distil_encoder
from spacy_distil.distillation.encoder.config import load_config
from spacy_distil.errors import ConfigError
from spacy_distil.report.layout import MISSING
from tests.util import SENTENCES, adam, make_examples, make_nlp, write_encoder

SUMMARY = {
    "lang": "en",
    "layers": {"pos": True, "tag": True, "ents": True, "cats": True, "cats_exclusive": True},
    "scored": {"pos": True, "tag": True, "ents": True, "cats": True},
    "splits": {"train": {"tokens": 200_000}},
}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six layers, and no head."""
    return write_encoder(tmp_path_factory.mktemp("teacher") / "bert", "bert", layers=6)


@pytest.fixture
def inputs(teacher: Path, tmp_path: Path) -> EncoderInputs:
    corpus, texts = tmp_path / "corpus", tmp_path / "text"
    corpus.mkdir()
    (corpus / "corpus.json").write_text(json.dumps(SUMMARY))
    for split in ("train", "dev", "test"):
        (corpus / f"{split}.spacy").write_bytes(b"")
    texts.mkdir()
    for name, n in ((text.TRAIN, 20), (text.DEV, 5)):
        rng = np.random.default_rng(n)
        documents = [" ".join(rng.permutation(SENTENCES)) for _ in range(n)]
        lines = [json.dumps({"text": document}) + "\n" for document in documents]
        (texts / name).write_text("".join(lines))
    return EncoderInputs(
        output=tmp_path / "rows",
        corpus=corpus,
        encoder=teacher,
        text=texts,
        block_size=16,
        max_blocks=40,
        batch_size=8,
    )


def options(command: Command) -> dict[str, str]:
    """The options of a command."""
    pairs = zip(command.arguments, command.arguments[1:], strict=False)
    return {name[2:]: value for name, value in pairs if name.startswith("--")}


# Text


def test_text_is_split_by_words() -> None:
    documents = ["a b c", "d e", "f", "g h"]
    assert text.split(documents, 4) == (documents[:2], documents[2:])
    assert text.split(documents, 5) == (documents[:2], documents[2:])
    assert text.split(documents, 6) == (documents[:3], documents[3:])
    assert text.split(documents, 100) == (documents, [])


def test_text_command(tmp_path: Path) -> None:
    directory = tmp_path / "texts"
    directory.mkdir()
    for i, source in enumerate(SOURCES):
        letter = "abcdefgh"[i]
        lines = [f"{letter}{'x' * (n + 1)} is one of many words." for n in range(150)]
        (directory / f"{source.name}.txt").write_text("\n".join(lines) + "\n")
    found = []
    for name in ("one", "two"):
        text.main(directory, tmp_path / name, words=900, dev_words=100, held_out=None, seed=1)
        found.append([(tmp_path / name / f).read_text() for f in (text.TRAIN, text.DEV)])
    assert found[0] == found[1]
    train, dev = ([json.loads(line)["text"] for line in part.splitlines()] for part in found[0])
    assert not set(train) & set(dev)
    words = [sum(len(document.split()) for document in part) for part in (train, dev)]
    assert words[1] >= 100
    assert sum(words) >= 1000
    assert {document[0] for document in train + dev} == set("abcdefgh")


# Rows


@pytest.mark.parametrize("name", ROWS)
def test_each_row_has_a_config_that_distillation_accepts(name: str, inputs: EncoderInputs) -> None:
    row = ROWS[name]
    commands = rows.make_commands(row, 1, inputs)
    train = commands[-1]
    encoder = row.encoder(inputs.output, 1) or inputs.encoder
    assert options(train)["paths.encoder"] == str(encoder)
    if not row.distil:
        assert len(commands) == 1 + (row.start == "copied") + row.adapted
        return
    config = inputs.output / "configs" / f"{name}.cfg"
    distil = commands[-2]
    assert distil.arguments[:4] == ("spacy", "distil", "encoder", str(config))
    assert options(distil)["output"] == str(encoder)
    assert options(distil)["training.seed"] == "1"
    settings = load_config(config)
    assert set(settings.objectives) == set(row.distil["objectives"])
    assert settings.student.start == ("random" if row.start == "random" else "teacher")
    assert settings.student.n_layers == rows.N_LAYERS
    assert settings.teacher.name == str(inputs.output / ADAPTED if row.adapted else inputs.encoder)
    for each in settings.objectives.values():
        assert row.adapted or not (each.needs.teacher_head or each.needs.student_head)
    stages = {stage: block["objectives"] for stage, block in row.distil.get("stages", {}).items()}
    if stages:
        assert {stage: each.objectives for stage, each in settings.stages.items()} == stages
    else:
        assert len(settings.stages) == 1


def test_all_rows_have_the_same_budget(inputs: EncoderInputs) -> None:
    distilled = [row for row in ROWS.values() if row.distil]
    configs = [rows.row_config(row, inputs) for row in distilled]
    rates = {
        row.name: config["training"].pop("learn_rate")
        for row, config in zip(distilled, configs, strict=True)
    }
    assert rates.pop("random") == 5e-4
    assert set(rates.values()) == {inputs.learn_rate} == {1e-4}
    for config in configs:
        assert config["corpus"] == configs[0]["corpus"]
        assert config["training"] == configs[0]["training"]
    trained = [dict(options(rows.make_commands(row, 0, inputs)[-1])) for row in ROWS.values()]
    for each in trained:
        del each["paths.encoder"]
        assert each == trained[0]


def test_stages_come_one_after_another() -> None:
    found = rows.staged((0.25, rows.RELATIONS), (0.75, rows.DISTILBERT))
    assert list(found["objectives"]) == ["relations", "soft_targets", "masked_lm", "cosine"]
    assert list(found["stages"].values()) == [
        {"objectives": ["relations"], "share": 0.25},
        {"objectives": ["soft_targets", "masked_lm", "cosine"], "share": 0.75},
    ]


def test_rows_are_compared_with_those_before_them() -> None:
    names = list(ROWS)
    for i, row in enumerate(ROWS.values()):
        assert set(row.before) <= set(names[:i])


def test_the_last_evaluation_is_after_the_last_step(inputs: EncoderInputs) -> None:
    train = rows.make_commands(ROWS["copied"], 0, inputs)[-1]
    # 3 epochs of 200,000 words in batches of 1,000.
    assert options(train)["training.eval_frequency"] == "300"
    config = load_spacy_config(inputs.output / "configs" / "copied-train.cfg")
    assert config["nlp"]["pipeline"] == ["transformer", "morphologizer", "tagger", "ner", "textcat"]
    assert config["components"]["ner"]["factory"] == "distil_ner"


def test_dry_run_prints_the_commands(
    inputs: EncoderInputs, capsys: pytest.CaptureFixture[str]
) -> None:
    rows.main(
        inputs.output,
        ["adapted-copied", "cosine"],
        corpus=inputs.corpus,
        encoder=inputs.encoder,
        text=inputs.text,
        seeds="0,2",
        dry_run=True,
    )
    lines = [line.split()[2:5] for line in capsys.readouterr().out.splitlines()]
    adapted = [["spacy", "distil", "adapt"], ["scripts.start_student", "teacher"]]
    found = [line[:2] if line[0] == "scripts.start_student" else line for line in lines]
    configs = inputs.output / "configs"
    train = [
        ["scripts.train", str(configs / f"{name}-train.cfg"), str(inputs.output / name)]
        for name in ("adapted-copied", "cosine")
    ]
    assert found == [*adapted, train[0]] * 2 + [["spacy", "distil", "encoder"], train[1]] * 2
    assert {path.name for path in inputs.output.iterdir()} == {"configs"}


def test_what_rows_need(inputs: EncoderInputs) -> None:
    with pytest.raises(ConfigError, match="No row cosines"):
        choose(ROWS, ["cosine", "cosines"])
    inputs.check()
    summary = inputs.corpus / "corpus.json"
    kept = summary.rename(summary.with_suffix(".bak"))
    with pytest.raises(ConfigError, match=summary.name):
        inputs.check()
    kept.rename(summary)
    (inputs.text / text.DEV).unlink()
    with pytest.raises(ConfigError, match=text.DEV):
        inputs.check()


# Table


@pytest.mark.slow
def test_runs_are_read_as_distillation_writes_them(inputs: EncoderInputs) -> None:
    output = inputs.output
    assert table.read_run(output / ADAPTED) is None
    settings = {"training.log_frequency": 2}
    row = ROWS["relations-then-distilbert"]
    command = rows.make_commands(row, 0, inputs)[0]
    steps = ["--training.log_frequency", "2", "--gpu-id", "-1"]
    result = CliRunner().invoke(distil_cli, [*command.arguments[2:], *steps])
    assert result.exit_code == 0, result.output
    # The teacher adapts to the same blocks, in steps of the same size.
    shared = load_config(rows.row_config(row, inputs), settings).source
    config = load_config(output / ADAPTED / "distil.cfg").source
    assert config["training"].pop("learn_rate") == pytest.approx(3e-4)
    assert shared["training"].pop("learn_rate") == 1e-4
    assert config["training"].pop("warmup") > shared["training"].pop("warmup")
    assert config["corpus"] == shared["corpus"]
    assert config["training"] == shared["training"]
    adapted = table.read_run(ROWS["adapted-teacher"].encoder(output, 0))
    assert adapted is not None
    assert (adapted.steps, adapted.pieces) == (5, 5 * 8 * 16)
    assert adapted.accuracy is not None

    encoder = row.encoder(output, 0)
    assert encoder is not None
    distil_encoder(rows.row_config(row, inputs), encoder, overrides=settings, gpu_id=-1)
    run = table.read_run(encoder)
    assert run is not None
    assert run.steps == 5
    records = [json.loads(line) for line in (encoder / "log.jsonl").read_text().splitlines()]
    # The two stages end after 2 and 5 of the steps.
    speeds = {r["step"]: r["pieces_per_second"] for r in records if r["kind"] == "train"}
    steps = sorted(speeds)
    taken = np.diff([0, *steps]) * 8 * 16
    assert run.minutes == pytest.approx(sum(taken / [speeds[step] for step in steps]) / 60)
    assert run.accuracy == [r for r in records if r["kind"] == "held_out"][-1]["student_accuracy"]
    assert table.read_run(None) is None
    results = json.loads((encoder / "distil.json").read_text())
    (encoder / "distil.json").write_text(json.dumps({**results, "finished": False}))
    assert table.read_run(encoder) is None


@pytest.fixture(scope="module")
def made(bert_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Directory of rows, and test documents. `masked-lm` has two seeds, `cosine` is unfinished."""
    root = tmp_path_factory.mktemp("distillation")
    pipelines = {"adapted-copied/seed-0": 1, "masked-lm/seed-0": 4, "masked-lm/seed-2": 8}
    for name, updates in {**pipelines, "cosine/seed-0": 0}.items():
        nlp = make_nlp(bert_dir, ["tagger", "ner", "textcat"])
        optimizer = adam(5e-3)
        for _ in range(updates):
            nlp.update(make_examples(nlp), sgd=optimizer)
        (root / name).mkdir(parents=True)
        nlp.to_disk(root / name / "model-best")
        if updates:
            (root / name / FINISHED).write_text("{}")
    for seed, accuracy in ((0, 0.25), (2, 0.35)):
        encoder = root / "masked-lm" / "encoder" / f"seed-{seed}"
        encoder.mkdir(parents=True)
        config = {"corpus": {"block_size": 128}, "training": {"batch_size": 32}}
        Config(config).to_disk(encoder / "distil.cfg")
        results = {"finished": True, "steps": 247, "scores": {"student_accuracy": accuracy}}
        (encoder / "distil.json").write_text(json.dumps(results))
        log: list[dict[str, Any]] = [
            {"step": 0, "kind": "held_out"},
            {"step": 200, "kind": "train", "pieces_per_second": 4096.0},
            {"step": 247, "kind": "train", "pieces_per_second": 2048.0},
        ]
        (encoder / "log.jsonl").write_text("".join(json.dumps(r) + "\n" for r in log))
    nlp = spacy.blank("en")
    docs = [example.reference for example in make_examples(nlp, 24, start=100)]
    DocBin(docs=docs).to_disk(root / "test.spacy")
    return root, root / "test.spacy"


@pytest.mark.slow
def test_tables_are_written(made: tuple[Path, Path], tmp_path: Path) -> None:
    root, test = made
    table.main(root, test, tmp_path, "found")
    result = json.loads((tmp_path / "found.json").read_text())
    lines = {line["name"]: line for line in result["lines"]}
    assert list(lines) == ["adapted-copied", "masked-lm"]
    assert result["runs"]["adapted-copied"] == []
    seconds = 200 * 1 + 47 * 2  # of 4,096 pieces a step
    assert [run["minutes"] for run in result["runs"]["masked-lm"]] == [seconds / 60] * 2
    expected = []
    for seed in (0, 2):
        nlp = spacy.load(root / "masked-lm" / f"seed-{seed}" / "model-best")
        expected.append(nlp.evaluate(list(Corpus(test)(nlp)))["ents_f"])
    entities = lines["masked-lm"]["scores"]["ents_f"]
    assert entities["seeds"] == pytest.approx(expected)
    (step,) = result["steps"]
    assert (step["row"], step["before"]) == ("masked-lm", "adapted-copied")
    copied = lines["adapted-copied"]["scores"]["ents_f"]["mean"]
    assert step["differences"]["ents_f"]["value"] == pytest.approx(np.mean(expected) - copied)
    markdown = (tmp_path / "found.md").read_text()
    row = next(line for line in markdown.splitlines() if line.startswith("| masked-lm: "))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    std = np.std(expected, ddof=1)
    assert f"{np.mean(expected) * 100:.1f} ± {std * 100:.1f}" in cells
    assert cells[-4:] == ["30.0 ± 7.1", "1.01 M", "247", "5"]
    row = next(line for line in markdown.splitlines() if line.startswith("| adapted-copied: "))
    assert [cell.strip() for cell in row.strip("|").split("|")][-4:] == [MISSING] * 4
    assert "Measured on" in markdown


def test_a_table_needs_a_finished_row(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no finished row"):
        table.collect(tmp_path, tmp_path / "test.spacy")


def test_factorized_embeddings_lose_less_with_more_width(
    inputs: EncoderInputs, teacher: Path, tmp_path: Path
) -> None:
    embeddings.main(
        teacher,
        inputs.text / text.TRAIN,
        sizes="8,16,32",
        compared=5,
        counted=15,
        pieces=40,
        output=tmp_path / "results",
    )
    found = json.loads((tmp_path / "results" / "embeddings.json").read_text())
    small, middle, whole = (found["losses"][size] for size in ("8", "16", "32"))
    for column, exact in enumerate((0, 0, 1, 1)):  # two errors and two cosines
        assert abs(small[column] - exact) > abs(middle[column] - exact) > 1e-3
        assert whole[column] == pytest.approx(exact, abs=2e-3)
    assert found["sizes"]["int8"] == 40 * (32 + 4)
    assert found["sizes"]["width 16, int8, with the map"] == 40 * (16 + 4) + 4 * 32 * 17
    with pytest.raises(ConfigError, match="expected more than 20"):
        embeddings.main(teacher, inputs.text / text.TRAIN, compared=20)
