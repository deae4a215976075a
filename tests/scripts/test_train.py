"""scripts.train, scripts.evaluate, scripts.start_student and scripts.clean."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import spacy
from safetensors.numpy import load_file
from spacy.tokens import Doc, DocBin
from typer.testing import CliRunner

from project.finished import FINISHED
from project.training import parse_seeds, schedule
from scripts import clean, evaluate, start_student, train
from spacy_distil.errors import ConfigError, CorpusError

CONFIG = Path(__file__).parents[2] / "configs" / "cnn.cfg"


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Twelve tagged docs, as scripts.corpus writes them."""
    directory = tmp_path / "corpus"
    directory.mkdir()
    vocab = spacy.blank("en").vocab
    docs = [Doc(vocab, words=["We", "ran"], tags=["PRON", "VERB"]) for _ in range(12)]
    for split in ("train", "dev", "test"):
        DocBin(docs=docs).to_disk(directory / f"{split}.spacy")
    summary = {"splits": {"train": {"tokens": 24}}}
    (directory / "corpus.json").write_text(json.dumps(summary))
    return directory


@pytest.fixture
def tagger_config(tmp_path: Path) -> Path:
    """The CNN config with nothing but a small tagger."""
    config = spacy.util.load_config(CONFIG, interpolate=False)
    config["nlp"]["pipeline"] = ["tok2vec", "tagger"]
    config["components"]["tok2vec"]["model"]["embed"]["rows"] = [50, 50, 50, 50]
    for name in ("morphologizer", "ner", "textcat"):
        del config["components"][name]
    config["training"]["score_weights"] = {"tag_acc": 1.0}
    config["training"]["batcher"]["size"] = 8
    path = tmp_path / "tagger.cfg"
    config.to_disk(path)
    return path


def run_train(config: Path, output: Path, corpus: Path, seeds: str) -> None:
    context = type("Context", (), {"args": []})()
    train.main(context, config, output, corpus, epochs=4, seeds=seeds, gpu_id=-1)


def test_epochs_become_steps(corpus: Path, tagger_config: Path) -> None:
    settings = schedule(tagger_config, corpus, epochs=40)
    assert settings == {
        "training.batcher.size": 8,
        "training.max_steps": 120,  # 40 epochs of 24 words in batches of 8
        "training.eval_frequency": 12,
    }
    assert schedule(tagger_config, corpus, epochs=0.1)["training.max_steps"] == 10
    longer = schedule(tagger_config, corpus, epochs=4, min_steps=60)
    assert longer["training.max_steps"] == 60
    assert longer["training.eval_frequency"] == 6
    assert schedule(tagger_config, corpus, epochs=4, min_steps=200) == settings  # 40 at most
    assert schedule(tagger_config, corpus, epochs=40, min_steps=100) == settings
    with pytest.raises(CorpusError, match=r"corpus\.json"):
        schedule(tagger_config, corpus / "no", epochs=1)


@pytest.mark.parametrize("name", ["train.cfg", "pipeline.cfg"])
def test_the_schedule_is_as_long_as_the_training(corpus: Path, name: str) -> None:
    path = CONFIG.with_name(name)
    paths = {"paths.train": "a", "paths.dev": "b", "paths.encoder": "c"}
    settings = {**paths, **schedule(path, corpus, epochs=40)}
    training = spacy.util.load_config(path, settings, interpolate=True)["training"]
    assert training["optimizer"]["learn_rate"]["total_steps"] == training["max_steps"]
    assert training["max_steps"] == settings["training.max_steps"] > 1


def test_warm_up_is_a_tenth_of_a_short_run(corpus: Path, tmp_path: Path) -> None:
    transformer = CONFIG.with_name("train.cfg")
    key = "training.optimizer.learn_rate.warmup_steps"
    (corpus / "corpus.json").write_text('{"splits": {"train": {"tokens": 150000}}}')
    assert schedule(transformer, corpus, epochs=1)[key] == 15
    assert schedule(transformer, corpus, epochs=100)[key] == 100


def test_small_corpora_have_smaller_batches(corpus: Path) -> None:
    transformer = CONFIG.with_name("train.cfg")
    for tokens, size in ((300_000, 1000), (40_000, 400), (24, 50)):
        (corpus / "corpus.json").write_text(f'{{"splits": {{"train": {{"tokens": {tokens}}}}}}}')
        settings = schedule(transformer, corpus, epochs=3)
        assert settings["training.batcher.size"] == size
        assert settings["training.max_steps"] == max(10, 3 * tokens // size)


def test_text_counts_as_part_of_the_corpus(corpus: Path) -> None:
    """Otherwise a run over much text would end before it has seen each annotated document once."""
    transformer = CONFIG.with_name("train.cfg")
    for words, size, steps in ((0, 100, 800), (50_000, 600, 800), (10**9, 1000, 880)):
        counts = {"splits": {"train": {"tokens": 10_000}}, "text": {"words": words}}
        (corpus / "corpus.json").write_text(json.dumps(counts))
        settings = schedule(transformer, corpus, epochs=8, with_text=True)
        assert settings["training.batcher.size"] == size
        assert settings["training.max_steps"] == steps
        alone = schedule(transformer, corpus, epochs=8)
        assert alone["training.max_steps"] == 800
        assert alone["training.batcher.size"] == 100


@pytest.mark.usefixtures("in_process")
def test_a_training_that_fails_ends_without_a_traceback(
    corpus: Path, tagger_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """spaCy has printed the reason."""
    text = tagger_config.read_text(encoding="utf8")
    tagger_config.write_text(text.replace("max_epochs = 0", 'max_epochs = "many"'))
    with pytest.raises(SystemExit) as stopped:
        run_train(tagger_config, tmp_path / "out", corpus, "0")
    assert stopped.value.code == 1
    assert not (tmp_path / "out" / "seed-0" / "finished.json").exists()
    assert "Traceback" not in capsys.readouterr().out


def test_seeds_are_numbers() -> None:
    assert parse_seeds("0, 1,22") == [0, 1, 22]
    with pytest.raises(ConfigError, match="'a,b'"):
        parse_seeds("a,b")


@pytest.mark.slow
@pytest.mark.usefixtures("in_process")
def test_train_and_evaluate_each_seed_once(
    corpus: Path, tagger_config: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "pipelines"
    run_train(tagger_config, output, corpus, "0,1")
    assert spacy.load(output / "best").pipe_names == ["tok2vec", "tagger"]
    first = (output / "seed-1" / "model-best" / "meta.json").stat().st_mtime_ns

    # Killed before the second seed had finished: only that one is trained again.
    (output / "seed-0" / FINISHED).unlink()
    capfd.readouterr()
    run_train(tagger_config, output, corpus, "0,1")
    printed = capfd.readouterr().out
    assert "seed-1 is trained already" in printed.replace("\n", " ")
    assert "seed-0 is trained already" not in printed.replace("\n", " ")
    assert (output / "seed-1" / "model-best" / "meta.json").stat().st_mtime_ns == first

    # Other training documents: what was trained on the old ones does not count.
    docs = list(DocBin().from_disk(corpus / "test.spacy").get_docs(spacy.blank("en").vocab))
    DocBin(docs=docs[:6]).to_disk(corpus / "train.spacy")
    run_train(tagger_config, output, corpus, "1")
    assert (output / "seed-1" / "model-best" / "meta.json").stat().st_mtime_ns != first

    evaluate.main(output, tmp_path / "metrics" / "tagger", corpus, gpu_id=-1)
    scores = json.loads((tmp_path / "metrics" / "tagger-seed-1.json").read_text())
    assert scores["tag_acc"] == pytest.approx(1.0)


def test_evaluate_needs_pipelines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        evaluate.main(tmp_path, tmp_path / "metrics", tmp_path)
    assert "has no seed-N" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("source", ["teacher", "finetuned", "distilled"])
def test_the_student_starts_from_what_was_chosen(
    source: str, teacher_dir: Path, tmp_path: Path
) -> None:
    sources = dict.fromkeys(("teacher", "distilled", "finetuned"), tmp_path / "elsewhere")
    sources[source] = teacher_dir
    output = tmp_path / "start"
    chosen = start_student.Source(source)
    output.mkdir()
    (output / "old.txt").touch()
    first = start_student.Choice.first
    start_student.main(chosen, output, **sources, layers=first, n_layers=1)
    assert not (output / "old.txt").exists()
    before = load_file(teacher_dir / "model.safetensors")
    after = load_file(output / "model.safetensors")
    # A distilled encoder is taken as it is, of the others the first layer.
    layers = {key.split("layer.")[1].split(".")[0] for key in after if "layer." in key}
    assert layers == (set("012345") if source == "distilled" else {"0"})
    for key, value in after.items():
        assert (value == before[key]).all()


def start(*arguments: str | Path) -> tuple[int, str]:
    app = start_student.typer.Typer()
    app.command()(start_student.main)
    result = CliRunner().invoke(app, [*map(str, arguments)])
    return result.exit_code, " ".join(result.output.split())


def test_the_student_starts_from_the_layers_named(teacher_dir: Path, tmp_path: Path) -> None:
    output = tmp_path / "start"
    layers = ("--layers", "ends", "--n-layers", "2")
    status, printed = start("teacher", output, "--teacher", teacher_dir, *layers)
    assert (status, "layers 0, 5 of" in printed) == (0, True), printed


def test_what_cannot_be_started_from_leaves_everything_as_it_was(
    teacher_dir: Path, tmp_path: Path
) -> None:
    old = tmp_path / "start" / "encoder" / "old.txt"
    old.parent.mkdir(parents=True)
    old.touch()
    encoder, output = old.parent, tmp_path / "start"
    refused: list[tuple[list[str | Path], str]] = [
        (["teacher", output], "with --teacher"),
        (["distilled", output, "--distilled", tmp_path], "has no config.json, no model"),
        (["teacher", output, "--teacher", tmp_path], "complete Hugging Face model directory"),
        (["teacher", encoder, "--teacher", encoder], "Choose another directory"),
        (["distilled", output, "--distilled", encoder], "Choose another directory"),
        (["teacher", output, "--teacher", teacher_dir, "--n-layers", "7"], "student_n_layers = 7"),
    ]
    for arguments, message in refused:
        status, printed = start(*arguments)
        assert (status, message in printed) == (1, True), printed
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [old]


def test_clean_stays_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = clean.typer.Typer()
    app.command()(clean.main)
    inside = tmp_path / "project"
    (inside / "training" / "x").mkdir(parents=True)
    outside = tmp_path / "precious"
    outside.mkdir()
    monkeypatch.chdir(inside)
    assert CliRunner().invoke(app, ["training", "not-there"]).exit_code == 0
    assert not (inside / "training").exists()
    assert CliRunner().invoke(app, [str(outside)]).exit_code == 1
    assert outside.exists()
