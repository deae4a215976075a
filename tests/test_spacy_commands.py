"""spaCy's own commands on pipelines with a shared encoder, in this process.

`spacy package` is in test_pipeline.py.
"""

from __future__ import annotations

import json
import re
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import spacy
import srsly
from safetensors.numpy import load_file
from spacy.cli._util import app
from spacy.cli.apply import apply
from spacy.cli.find_threshold import find_threshold
from spacy.tokens import DocBin
from spacy.training import Corpus
from spacy.training.initialize import init_nlp
from spacy.util import load_config
from thinc.api import Config
from typer.testing import CliRunner

from spacy_distil.cli.configs import PIPES, training_config
from tests.commands import spacy_command
from tests.life.corpus import annotations_of, make_annotated
from tests.util import LISTENER, STOCK_LISTENER, make_nlp, torch_model_of, write_encoder

# They share a pipeline that takes seconds to train.
pytestmark = pytest.mark.slow

# The last two learn from pairs of texts, which the documents here are not.
HEADS = [
    pipe for pipe in PIPES if pipe not in ("distil_ner", "textcat", "distil_pair", "distil_qa")
]
SCORES = ("tag_acc", "pos_acc", "lemma_acc", "sents_f", "dep_las", "ents_f", "spans_sc_f")


# Input of the commands


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train.spacy, more.spacy, dev.spacy, texts.jsonl and a tiny encoder."""
    path = tmp_path_factory.mktemp("commands")
    nlp = spacy.blank("en")
    for split, n, start in (("train", 40, 0), ("more", 100, 0), ("dev", 20, 1000)):
        docs = [each.reference for each in make_annotated(nlp, n, start=start)]
        DocBin(docs=docs, store_user_data=True).to_disk(path / f"{split}.spacy")
    srsly.write_jsonl(path / "texts.jsonl", [{"text": doc.text} for doc in docs])
    # Large enough for the window in the config.
    write_encoder(path / "encoder", "bert", positions=256)
    return path


@pytest.fixture(scope="module")
def config(directory: Path) -> Path:
    """Write the config that `init-config train` makes."""
    path = directory / "train.cfg"
    path.write_text(training_config(pipes=HEADS, encoder=str(directory / "encoder")))
    return path


@pytest.fixture(scope="module")
def paths(directory: Path) -> list[str]:
    """The options that this config needs."""
    train, dev = (str(directory / f"{split}.spacy") for split in ("train", "dev"))
    return ["--paths.train", train, "--paths.dev", dev]


@pytest.fixture(scope="module")
def whole_config(config: Path, paths: list[str]) -> Path:
    """Write the same config with the paths in it."""
    overrides = dict(zip([path[2:] for path in paths[::2]], paths[1::2], strict=True))
    path = config.with_name("whole.cfg")
    load_config(config, overrides=overrides).to_disk(path)
    return path


@pytest.fixture(scope="module")
def trained(config: Path, paths: list[str], directory: Path) -> Path:
    """Run `spacy train` with this config."""
    output = spacy_command(
        "train", config, "--output", directory / "trained", *paths,
        "--training.max_steps", "60", "--training.eval_frequency", "30",
        "--training.optimizer.learn_rate.initial_rate", "0.02",
        "--training.optimizer.learn_rate.warmup_steps", "10",
        "--training.batcher.size", "160",
    )  # fmt: skip
    assert "Saved pipeline to output directory" in output
    return directory / "trained" / "model-last"


@pytest.fixture(scope="module")
def dev_scores(trained: Path, directory: Path) -> dict[str, Any]:
    """Score the trained pipeline."""
    nlp = spacy.load(trained)
    return nlp.evaluate(list(Corpus(directory / "dev.spacy")(nlp)))


def weights(pipeline: Path) -> dict[str, np.ndarray]:
    return load_file(pipeline / "transformer" / "model.safetensors")


def distance(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> float:
    return max(float(np.abs(left[name] - right[name]).max()) for name in left)


# train


def test_train(trained: Path, directory: Path, dev_scores: dict[str, Any]) -> None:
    nlp = spacy.load(trained)
    assert nlp.pipe_names == ["transformer", *HEADS]
    for score in SCORES:
        assert dev_scores[score] > 0.9, score
    base = load_file(directory / "encoder" / "model.safetensors")
    assert 1e-4 < distance(weights(trained), base) < 1


def test_train_goes_on_from_a_trained_pipeline(
    trained: Path, config: Path, paths: list[str], tmp_path: Path, dev_scores: dict[str, Any]
) -> None:
    """Sourced pipes keep what they have learned, and go on learning."""
    settings = load_config(config)
    for name in settings["nlp"]["pipeline"]:
        settings["components"][name] = {"source": str(trained)}
    settings.to_disk(tmp_path / "resume.cfg")
    spacy_command(
        "train", tmp_path / "resume.cfg", "--output", tmp_path, *paths,
        "--training.max_steps", "4", "--training.eval_frequency", "2",
        "--training.optimizer.learn_rate.initial_rate", "0.0001",
        "--training.optimizer.learn_rate.warmup_steps", "1",
    )  # fmt: skip
    moved = distance(weights(tmp_path / "model-last"), weights(trained))
    assert 1e-6 < moved < 1e-3
    scores = srsly.read_json(tmp_path / "model-last" / "meta.json")["performance"]
    for score in SCORES:
        assert scores[score] > dev_scores[score] - 0.02, score


# init


def test_init_fill_config(directory: Path, tmp_path: Path) -> None:
    """A base config with nothing but the factory, and one that names its encoder."""
    base = tmp_path / "base.cfg"
    base.write_text(
        '[nlp]\nlang = "en"\npipeline = ["transformer","ner"]\n\n[components]\n\n'
        '[components.transformer]\nfactory = "distil_transformer"\n\n'
        '[components.ner]\nfactory = "ner"\n\n'
        '[components.ner.model]\n@architectures = "spacy.TransitionBasedParser.v2"\n'
        'state_type = "ner"\nextra_state_tokens = false\nhidden_width = 64\nmaxout_pieces = 2\n\n'
        '[components.ner.model.tok2vec]\n@architectures = "spacy-distil.Listener.v1"\n'
    )
    spacy_command("init", "fill-config", base, tmp_path / "filled.cfg")
    model = load_config(tmp_path / "filled.cfg")["components"]["transformer"]["model"]
    assert model["name"] == "distilbert-base-uncased"
    assert (model["engine"], model["window"], model["overlap"]) == ("torch", None, 32)
    head = load_config(tmp_path / "filled.cfg")["components"]["ner"]["model"]
    assert head["tok2vec"]["width"] is None

    text = base.read_text() + (
        '\n[components.transformer.model]\n@architectures = "spacy-distil.DistilTransformer.v1"\n'
        f"name = {json.dumps(str(directory / 'encoder'))}\nwindow = 64\n"
    )
    base.write_text(text)
    output = spacy_command("init", "fill-config", base, tmp_path / "filled.cfg", "--diff")
    assert "START CONFIG DIFF" in output
    model = load_config(tmp_path / "filled.cfg")["components"]["transformer"]["model"]
    assert (model["name"], model["window"]) == (str(directory / "encoder"), 64)
    assert "Config is valid" in spacy_command(
        *("debug", "config", tmp_path / "filled.cfg", "--paths.train", "a", "--paths.dev", "b")
    )


def test_init_fill_config_finds_the_generated_one_complete(config: Path, tmp_path: Path) -> None:
    spacy_command("init", "fill-config", config, tmp_path / "filled.cfg")
    assert load_config(tmp_path / "filled.cfg") == load_config(config)


def test_init_labels(config: Path, paths: list[str], trained: Path, tmp_path: Path) -> None:
    """The labels equal the labels of the trained pipeline, and training accepts them."""
    spacy_command("init", "labels", config, tmp_path / "labels", *paths)
    labels = {path.stem: srsly.read_json(path) for path in (tmp_path / "labels").iterdir()}
    nlp: Any = spacy.load(trained)
    assert set(labels) == set(HEADS) - {"senter", "distil_vectors"}
    assert set(labels["tagger"]) == {"NNP", "VBD", "PRP", "VBP", "NN", "."}
    assert sorted(labels["textcat_multilabel"]) == ["food", "travel"]

    settings = load_config(config, overrides={"paths.train": paths[1], "paths.dev": paths[3]})
    reader = {"@readers": "spacy.read_labels.v1"}
    settings["initialize"]["components"] = {
        name: {"labels": {**reader, "path": str(tmp_path / "labels" / f"{name}.json")}}
        for name in labels
    }
    initialized: Any = init_nlp(Config(settings))
    for name in labels:
        assert initialized.get_pipe(name).labels == nlp.get_pipe(name).labels, name


def test_init_nlp(whole_config: Path, directory: Path, tmp_path: Path) -> None:
    spacy_command("init", "nlp", whole_config, tmp_path)
    assert distance(weights(tmp_path), load_file(directory / "encoder" / "model.safetensors")) == 0
    nlp: Any = spacy.load(tmp_path)
    assert nlp.get_pipe("ner").labels == ("LOC", "PER")


# debug


def test_debug_config(config: Path, paths: list[str]) -> None:
    output = spacy_command("debug", "config", config, *paths, "--show-functions")
    assert "Config is valid" in output
    for function, module in (
        ("spacy-distil.DistilTransformer.v1", "spacy_distil.component.architectures"),
        ("spacy-distil.Listener.v1", "spacy_distil.component.listener"),
    ):
        assert function in output
        assert module in output
    broken = ["--components.transformer.model.window", "many"]
    result = CliRunner().invoke(app, ["debug", "config", str(config), *paths, *broken])
    assert result.exit_code == 1
    assert "window" in result.output


def test_debug_data(directory: Path, paths: list[str], tmp_path: Path) -> None:
    pipes = ["tagger", "ner", "spancat"]
    config = tmp_path / "train.cfg"
    config.write_text(training_config(pipes=pipes, encoder=str(directory / "encoder")))
    # Fewer than 100 docs are an error.
    options = [*paths, "--paths.train", str(directory / "more.spacy")]
    output = " ".join(spacy_command("debug", "data", config, *options, "--verbose").split())
    assert "Pipeline can be initialized with data" in output
    assert "Training pipeline: transformer, tagger, ner, spancat" in output
    assert "100 training docs" in output
    assert "20 evaluation docs" in output
    for label in ("'PER' (100)", "'LOC' (100)", "'VBD' (100)"):
        assert label in output


@pytest.mark.parametrize(
    ("name", "listener"),
    [("transformer", LISTENER), ("tok2vec", STOCK_LISTENER)],
    ids=["ours", "stock"],
)
def test_debug_model(
    name: str, listener: dict[str, Any], whole_config: Path, tmp_path: Path
) -> None:
    """Its training steps reach the pipe, and go through the encoder of that name."""
    settings = load_config(whole_config)
    settings["nlp"]["pipeline"] = [name, "tagger"]
    settings["components"] = {
        name: settings["components"]["transformer"],
        "tagger": settings["components"]["tagger"],
    }
    settings["components"]["tagger"]["model"]["tok2vec"] = listener
    settings.to_disk(tmp_path / "debug.cfg")
    output = spacy_command(
        *("debug", "model", tmp_path / "debug.cfg", "tagger"),
        *("--print-step1", "--print-step2", "--print-step3", "--dimensions", "--parameters"),
    )
    assert "Initialized the model with the training corpus." in output
    assert "dim nO: 32" in output  # the listener's, inferred
    assert "STEP 2 - after training" in output
    assert "STEP 3 - prediction" in output
    output = spacy_command("debug", "model", tmp_path / "debug.cfg", name, "--print-step3")
    (prediction,) = re.findall(r"STEP 3 - prediction.*", output, re.DOTALL)
    assert "array([[" in prediction


def test_debug_diff_config(config: Path, trained: Path) -> None:
    output = spacy_command("debug", "diff-config", config)
    assert "spacy-distil.DistilTransformer.v1" in output
    assert "spacy.HashEmbedCNN" in output or "spacy.Tok2Vec" in output  # what it replaces
    output = spacy_command(
        *("debug", "diff-config", config, "--compare-to", trained / "config.cfg", "--markdown")
    )
    assert "+ max_steps = 1600" in output
    assert "- max_steps = 60" in output


def test_debug_profile(trained: Path, directory: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)  # it writes Profile.prof
    output = spacy_command("debug", "profile", trained, directory / "texts.jsonl", "--n-texts", "8")
    assert "Profile stats" in output
    assert re.search(r"pipe\.py:\d+\(set_annotations\)", output)
    assert (tmp_path / "Profile.prof").exists()


def test_resume_training(trained: Path) -> None:
    """The optimizer is made from the saved config."""
    optimizer: Any = spacy.load(trained).resume_training()
    rates = list(islice(optimizer.schedules["learn_rate"], 61))
    assert max(rates) == pytest.approx(0.02)
    assert rates[60] == 0


# assemble, pretrain


def test_assemble(trained: Path, tmp_path: Path) -> None:
    """Assemble one pipe that listens, and one with an encoder inside."""
    assembled = {
        "nlp": {"lang": "en", "pipeline": ["ner", "transformer", "tagger"]},
        "components": {
            "transformer": {"source": str(trained)},
            "tagger": {"source": str(trained)},
            "ner": {"source": str(trained), "replace_listeners": ["model.tok2vec"]},
        },
    }
    Config(assembled).to_disk(tmp_path / "assemble.cfg")
    spacy_command("assemble", tmp_path / "assemble.cfg", tmp_path / "out")
    nlp: Any = spacy.load(tmp_path / "out")
    original = spacy.load(trained)
    assert nlp.pipe_names == ["ner", "transformer", "tagger"]
    assert nlp.get_pipe("transformer").listening_components == ["tagger"]
    for text in ("Ann visited Rome. We like pizza.", ""):
        doc, wanted = nlp(text), original(text)
        np.testing.assert_allclose(doc.tensor, wanted.tensor, rtol=0, atol=1e-6)
        assert [token.tag_ for token in doc] == [token.tag_ for token in wanted]
        assert [(e.text, e.label_) for e in doc.ents] == [(e.text, e.label_) for e in wanted.ents]
    assert doc.tensor.shape == (0, 32)


def test_assemble_an_encoder_by_its_name(directory: Path, tmp_path: Path) -> None:
    model = {
        "@architectures": "spacy-distil.DistilTransformer.v1",
        "name": str(directory / "encoder"),
    }
    assembled = {
        "nlp": {"lang": "en", "pipeline": ["transformer"]},
        "components": {"transformer": {"factory": "distil_transformer", "model": model}},
    }
    Config(assembled).to_disk(tmp_path / "assemble.cfg")
    spacy_command("assemble", tmp_path / "assemble.cfg", tmp_path / "out")
    text = "Ann visited Rome."
    wanted = make_nlp(directory / "encoder")(text).tensor
    np.testing.assert_allclose(spacy.load(tmp_path / "out")(text).tensor, wanted, atol=1e-6)


def test_pretrain(whole_config: Path, directory: Path, tmp_path: Path) -> None:
    """spaCy's own language-modelling objective, and training that starts from its weights."""
    spacy_command("init", "fill-config", whole_config, tmp_path / "pretrain.cfg", "--pretraining")
    options = [
        *("--pretraining.component", "transformer", "--pretraining.max_epochs", "3"),
        *("--paths.raw_text", str(directory / "texts.jsonl")),
    ]
    spacy_command("pretrain", tmp_path / "pretrain.cfg", tmp_path / "out", *options)
    overrides: dict[str, Any] = {
        "pretraining.component": "transformer",
        "paths.raw_text": str(directory / "texts.jsonl"),
        "paths.init_tok2vec": str(tmp_path / "out" / "model-last.bin"),
    }
    nlp: Any = init_nlp(load_config(tmp_path / "pretrain.cfg", overrides=overrides))
    base = load_file(directory / "encoder" / "model.safetensors")
    state = {name: tensor.numpy() for name, tensor in torch_model_of(nlp).state_dict().items()}
    assert 1e-5 < distance({name: base[name] for name in state if name in base}, state) < 0.1


# benchmark, evaluate, find-threshold, apply, info


def test_benchmark_speed(trained: Path, directory: Path) -> None:
    output = spacy_command(
        *("benchmark", "speed", trained, directory / "dev.spacy"),
        *("--batches", "30", "--batch-size", "2", "--warmup", "1"),
    )
    (mean,) = re.findall(r"Mean: ([0-9.]+) words/s", output)
    assert float(mean) > 0


@pytest.mark.parametrize("name", [["benchmark", "accuracy"], ["evaluate"]])
def test_benchmark_accuracy(
    name: list[str], trained: Path, directory: Path, tmp_path: Path, dev_scores: dict[str, Any]
) -> None:
    output = spacy_command(
        *name, trained, directory / "dev.spacy", "--output", tmp_path / "scores.json"
    )
    assert "NER F" in output
    scores = srsly.read_json(tmp_path / "scores.json")
    for score in (*SCORES, "cats_macro_auc"):
        assert scores[score] == pytest.approx(dev_scores[score], abs=1e-6), score


@pytest.mark.parametrize(
    ("pipe", "score", "lowest"),
    [
        # With a threshold of 0 each doc has both labels, and half of them are right.
        ("textcat_multilabel", "cats_macro_f", 2 / 3),
        # Each span has both, too: 2 names are among 21 spans of up to 3 tokens.
        ("spancat", "spans_sc_f", 2 * 2 / (2 + 2 * 21)),
    ],
)
def test_find_threshold(
    pipe: str, score: str, lowest: float, trained: Path, directory: Path
) -> None:
    dev = directory / "dev.spacy"
    best, best_score, scores = find_threshold(
        str(trained), dev, pipe, "threshold", score, n_trials=3
    )
    assert list(scores) == [0.0, 0.5, 1.0]
    assert best_score == scores[best] == max(scores.values())
    nlp = spacy.load(trained, config={"components": {pipe: {"threshold": 0.5}}})
    evaluated = nlp.evaluate(list(Corpus(dev)(nlp)))[score]
    assert scores[0.5] == pytest.approx(evaluated, abs=1e-6)
    assert scores[0.0] == pytest.approx(lowest, abs=1e-3)
    assert scores[1.0] == 0


@pytest.mark.parametrize("batch_size", [1, 5])
def test_apply(trained: Path, directory: Path, tmp_path: Path, batch_size: int) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "texts.jsonl").write_text((directory / "texts.jsonl").read_text())
    (data / "one.txt").write_text("Ann visited Rome. We like pizza.")
    (data / "empty.txt").write_text("")
    apply(data, tmp_path / "out.spacy", str(trained), "text", batch_size, 1)
    nlp = spacy.load(trained)
    docs = list(DocBin().from_disk(tmp_path / "out.spacy").get_docs(nlp.vocab))
    assert len(docs) == 22
    assert sum(not len(doc) for doc in docs) == 1
    for doc in docs:
        found, wanted = annotations_of(doc), annotations_of(nlp(doc.text))
        for name in ("tokens", "entities", "spans"):
            assert found[name] == wanted[name]
        if len(doc):  # spaCy's scores for an empty doc depend on its batch
            assert found["cats"] == pytest.approx(wanted["cats"], abs=1e-3)


def test_info(trained: Path) -> None:
    output = spacy_command("info", trained)
    assert re.search(rf"^pipeline +{re.escape(str(['transformer', *HEADS]))}", output, re.MULTILINE)
    assert "spacy-distil[train]" in spacy_command("info", trained, "--markdown")


def test_find_function() -> None:
    output = spacy_command(
        "find-function", "spacy-distil.DistilTransformer.v1", "-r", "architectures"
    )
    assert re.search(r"spacy_distil/component/architectures\.py:\d+", "".join(output.split()))
