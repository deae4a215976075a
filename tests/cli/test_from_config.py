"""`init-config train --from`: configs of spaCy's own encoders become ours, and train."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import spacy
from spacy.cli.init_config import fill_config
from spacy.cli.init_config import init_config as spacy_init_config
from spacy.schemas import ConfigSchemaTraining
from spacy.tokens import DocBin
from spacy.training import Corpus
from spacy.training.initialize import init_nlp
from spacy.util import load_config, load_config_from_str
from thinc.api import Config

from spacy_distil.cli.configs import training_config
from spacy_distil.component.pipe import DistilTransformerPipe
from tests.cli.test_init_config import init_config, rewritten
from tests.commands import spacy_command
from tests.encoding.test_language import english_tokenizer
from tests.life.corpus import FACTORIES, add_stock_pipes, make_annotated
from tests.util import registry, write_encoder

PIPES = ["tagger", "parser", "ner", "textcat", "trainable_lemmatizer", "spancat"]
NULL_SETTER = {"@annotation_setters": "spacy-transformers.null_annotation_setter.v1"}
TRANSFORMERS = pytest.mark.skipif(
    importlib.util.find_spec("spacy_transformers") is None, reason="needs spacy-transformers"
)
CNN = {"@architectures": "spacy.HashEmbedCNN.v2", "pretrained_vectors": None, "width": 16}
CNN |= {
    "depth": 1,
    "embed_size": 100,
    "window_size": 1,
    "maxout_pieces": 2,
    "subword_features": True,
}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("from") / "encoder", "distilbert", positions=512)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "train.spacy"
    docs = [each.reference for each in make_annotated(spacy.blank("en"))]
    DocBin(docs=docs, store_user_data=True).to_disk(path)
    return path


def write(config: Config, directory: Path) -> Path:
    path = directory / "old.cfg"
    config.to_disk(path, interpolate=False)
    return path


def swapped(path: Path, *options: str | Path) -> tuple[Config, str]:
    """RETURNS: the new config, and what the command says."""
    output = path.with_name("new.cfg")
    result = init_config("train", output, "--from", path, "--force", *options)
    assert result.exit_code == 0, result.output
    text = output.read_text(encoding="utf8")
    assert rewritten("train", text) == text
    return load_config(output, interpolate=False), " ".join(result.output.split())


def refused(config: Config, directory: Path, *options: str | Path) -> str:
    result = init_config("train", "-", "--from", write(config, directory), *options)
    assert result.exit_code == 1, result.output
    return " ".join(result.output.split())


def learn(config: Config, encoder: Path, corpus: Path, **training: Any) -> Any:
    """Take the first step of a training. RETURNS: the pipeline."""
    paths = {"train": str(corpus), "dev": str(corpus), "encoder": str(encoder)}
    config = Config(config).merge({"paths": paths, "training": training})
    nlp: Any = init_nlp(config)
    settings = registry.resolve(config.interpolate()["training"], schema=ConfigSchemaTraining)
    (batch, *_) = settings["batcher"](list(Corpus(str(corpus))(nlp)))
    frozen, annotating = settings["frozen_components"], settings["annotating_components"]
    losses = nlp.update(batch, sgd=settings["optimizer"], exclude=frozen, annotates=annotating)
    listening = set(nlp.get_pipe("transformer").listening_components)
    assert listening
    assert losses.keys() >= {"transformer", *listening} - set(frozen)
    return nlp


def quickstart(pipes: Sequence[str] = PIPES, **options: Any) -> Config:
    return spacy_init_config(lang="en", pipeline=[*pipes], **options)


def listens(config: Config, pipe: str) -> bool:
    architecture = config["components"][pipe]["model"]["tok2vec"]["@architectures"]
    return architecture == "spacy-distil.Listener.v1"


# spaCy's own configs


@pytest.mark.parametrize("optimize", ["efficiency", "accuracy"])
def test_a_cnn_config(optimize: str, tmp_path: Path, encoder: Path, corpus: Path) -> None:
    old = quickstart(optimize=optimize)
    old["training"]["patience"] = 5
    config, output = swapped(write(old, tmp_path), "--encoder", encoder)
    assert config["nlp"]["pipeline"] == ["transformer", *PIPES]
    assert "'tok2vec' is called 'transformer'" in output
    assert ("the encoder reads no static vectors" in output) == (optimize == "accuracy")
    assert "patience = 5 may end the run" in output
    # The rest stays.
    for pipe in PIPES[:3]:
        model = dict(config["components"][pipe]["model"])
        assert listens(config, pipe)
        tok2vec = {"tok2vec": old["components"][pipe]["model"]["tok2vec"]}
        assert model | tok2vec == old["components"][pipe]["model"]
    for section in ("corpora", "nlp", "initialize"):
        pipeline = {"pipeline": old["nlp"]["pipeline"]} if section == "nlp" else {}
        assert config[section] | pipeline == old[section]
    changed = {"optimizer": old["training"]["optimizer"]}
    assert config["training"] | changed == old["training"]
    # Both learn at rates of their own.
    assert config["components"]["transformer"]["model"]["learn_rate_scale"] == 0.2
    rate = config["training"]["optimizer"]["learn_rate"]
    assert rate["initial_rate"] == 0.001
    assert (rate["warmup_steps"], rate["total_steps"]) == (100, "${training.max_steps}")
    if optimize == "efficiency":  # the other has vectors to load
        nlp = learn(config, encoder, corpus)
        assert isinstance(nlp.get_pipe("transformer"), DistilTransformerPipe)


@TRANSFORMERS
def test_a_transformer_config(tmp_path: Path, encoder: Path, corpus: Path) -> None:
    old = quickstart(gpu=True)
    old["components"]["transformer"]["set_extra_annotations"] = dict(NULL_SETTER)
    old["components"]["transformer"]["model"]["transformer_config"] = {"output_attentions": True}
    path = write(old, tmp_path)
    config, output = swapped(path)
    assert config["paths"]["encoder"] == "roberta-base"
    assert config["components"]["transformer"]["set_extra_annotations"] is None
    assert "doc._.trf_data is not set" in output
    assert "transformer_config of the transformer has no counterpart" in output
    assert "discard_oversize = true silently drops long documents" in output
    assert (
        "get_spans (@span_getters = spacy-transformers.strided_spans.v1, window = 128, stride = "
        "96), in tokens, gives way to window = null, overlap = 32, in pieces" in output
    )
    assert "max_batch_items" not in output
    model = config["components"]["transformer"]["model"]
    assert model["pooling"] == "mean"
    assert model["window"] is None  # its gpu_allocator says GPU
    assert swapped(path, "--cpu")[0]["components"]["transformer"]["model"]["window"] == 192
    # The encoder learns as fast as before, the pipes faster.
    assert old["training"]["optimizer"]["learn_rate"]["initial_rate"] == 5e-5
    assert model["learn_rate_scale"] == 0.05
    rate = config["training"]["optimizer"]["learn_rate"]
    assert (rate["initial_rate"], rate["warmup_steps"]) == (0.001, 250)
    nlp = learn(config, encoder, corpus)
    assert nlp.pipe_names == ["transformer", *PIPES]


@pytest.mark.slow
def test_it_trains(tmp_path: Path, encoder: Path, corpus: Path) -> None:
    """From a CNN's config to a trained pipeline, with a schedule that fits the corpus."""
    path = write(quickstart(["tagger", "ner"]), tmp_path)
    config, output = swapped(path, "--encoder", encoder, "--corpus", corpus)
    training = config["training"]
    assert training["batcher"]["size"] == 50
    assert (training["max_steps"], training["eval_frequency"], training["patience"]) == (100, 10, 0)
    assert training["optimizer"]["learn_rate"]["warmup_steps"] == 10
    assert "[training] fits the corpus" in output
    out = tmp_path / "out"
    spacy_command(
        *("train", tmp_path / "new.cfg", "--output", out, "--paths.dev", corpus),
    )
    nlp: Any = spacy.load(out / "model-best")
    doc = nlp("Ann visited Rome. We like pizza.")
    assert [token.tag_ for token in doc][:4] == ["NNP", "VBD", "NNP", "."]
    assert [each.text for each in doc.ents] == ["Ann", "Rome"]


def test_pipes_with_encoders_of_their_own(tmp_path: Path, encoder: Path, corpus: Path) -> None:
    nlp: Any = spacy.blank("en")
    nlp.add_pipe("sentencizer")
    for factory in FACTORIES:
        if factory not in ("distil_ner", "senter"):
            nlp.add_pipe(factory)
    nlp.add_pipe("entity_ruler")
    old = nlp.config
    for split in ("train", "dev"):
        old["corpora"][split]["path"] = f"${{paths.{split}}}"
    config, output = swapped(write(old, tmp_path))
    assert config["nlp"]["pipeline"] == ["transformer", *nlp.pipe_names]
    for factory in ("tagger", "parser", "ner", "spancat"):
        assert listens(config, factory)
        assert f"{factory!r} had an encoder of its own, and listens now" in output
    for factory in ("sentencizer", "entity_ruler"):
        assert config["components"][factory] == old["components"][factory]
    trained = learn(config, encoder, corpus)
    listening = trained.get_pipe("transformer").listening_components
    assert set(listening) == set(FACTORIES) - {"distil_ner", "senter"}


def test_an_encoder_moves_before_a_pipe_that_listens_now(tmp_path: Path) -> None:
    nlp: Any = spacy.blank("en")
    nlp.add_pipe("tagger")
    nlp.add_pipe("tok2vec")
    nlp.add_pipe("ner", config={"model": {"tok2vec": dict(STOCK)}})
    config, output = swapped(write(nlp.config, tmp_path))
    assert config["nlp"]["pipeline"] == ["transformer", "tagger", "ner"]
    assert "'transformer' comes before 'tagger'" in output


STOCK = {"@architectures": "spacy.Tok2VecListener.v1", "width": 96, "upstream": "tok2vec"}


# Frozen, annotating and sourced components


def test_a_frozen_encoder_stays_frozen(tmp_path: Path, encoder: Path, corpus: Path) -> None:
    old = quickstart(["tagger", "ner"])
    old["training"].update(frozen_components=["tok2vec"], annotating_components=["tok2vec"])
    old["nlp"]["disabled"] = ["tok2vec"]
    config, output = swapped(write(old, tmp_path))
    assert "frozen = true in its model instead of frozen_components" in output
    assert config["training"]["frozen_components"] == []
    assert config["training"]["annotating_components"] == ["transformer"]
    assert config["nlp"]["disabled"] == ["transformer"]
    config["nlp"]["disabled"] = []
    nlp = learn(config, encoder, corpus)
    assert nlp.config["components"]["transformer"]["model"]["frozen"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline with a shared CNN, a pipe with its own, and one without."""
    nlp: Any = spacy.blank("en")
    nlp.add_pipe("tok2vec", config={"model": CNN})
    add_stock_pipes(nlp, ["tagger"], {**STOCK, "width": 16})
    nlp.add_pipe("ner", config={"model": {"tok2vec": dict(CNN)}})
    nlp.add_pipe("sentencizer")
    nlp.initialize(lambda: make_annotated(nlp))
    path = tmp_path_factory.mktemp("trained") / "cnn"
    nlp.to_disk(path)
    return path


def test_sourced_pipes_keep_their_encoder(
    trained: Path, tmp_path: Path, encoder: Path, corpus: Path
) -> None:
    old = quickstart(["tagger", "ner", "sentencizer", "parser"])
    for name in ("tok2vec", "tagger", "ner"):
        old["components"][name] = {"source": str(trained)}
    old["components"]["sentencizer"] = {"factory": "sentencizer"}
    old["components"]["parser"]["model"]["tok2vec"]["width"] = 16  # it was that of the tok2vec here
    old["training"].update(frozen_components=["tok2vec", "tagger", "ner"])
    old["training"]["annotating_components"] = ["tok2vec", "tagger"]
    config, output = swapped(write(old, tmp_path))
    assert "'tagger' is from" in output
    assert "'ner' is from" not in output
    assert config["components"]["tagger"]["replace_listeners"] == ["model.tok2vec"]
    assert config["components"]["ner"] == {"source": str(trained)}
    assert config["training"]["frozen_components"] == ["tagger", "ner"]
    config["components"]["transformer"]["model"]["frozen"] = False
    nlp = learn(config, encoder, corpus)
    text = "Ann visited Rome."
    original: Any = spacy.load(trained)
    assert [token.tag_ for token in nlp(text)] == [token.tag_ for token in original(text)]
    assert nlp.get_pipe("transformer").listening_components == ["parser"]


def test_a_source_that_cannot_be_read(trained: Path, tmp_path: Path) -> None:
    old = quickstart(["tagger", "ner"])
    old["components"]["ner"] = {"source": "en_none"}
    assert "No pipeline 'en_none'" in refused(old, tmp_path)
    old["components"]["ner"] = {"source": str(trained), "component": "parser"}
    assert "has no component 'parser', only tok2vec, tagger" in refused(old, tmp_path)


def test_replace_listeners_of_the_user_stay(trained: Path, tmp_path: Path) -> None:
    old = quickstart(["tagger", "textcat"])
    settings = {"source": str(trained), "replace_listeners": ["model.tok2vec"]}
    old["components"]["tagger"] = dict(settings)
    config, output = swapped(write(old, tmp_path))
    assert config["components"]["tagger"] == settings
    assert "is from" not in output


def test_a_component_of_the_users_own(tmp_path: Path) -> None:
    old = quickstart(["tagger"])
    own = {"factory": "my_component", "threshold": 0.5}
    own["model"] = {"@architectures": "my_model.v1", "inner": {"tok2vec": dict(STOCK)}}
    old["components"]["mine"] = own
    old["nlp"]["pipeline"].append("mine")
    config, _ = swapped(write(old, tmp_path))
    template = Config().from_str(training_config(pipes=["tagger"]))
    expected = template["components"]["tagger"]["model"]["tok2vec"]
    assert expected["without_encoder"] == "error"
    assert config["components"]["tagger"]["model"]["tok2vec"] == expected
    mine = config["components"]["mine"]
    assert mine["model"].pop("inner") == {"tok2vec": expected}
    own["model"].pop("inner")
    assert mine == own


def test_variables_count_with_their_values(
    trained: Path, tmp_path: Path, encoder: Path, corpus: Path
) -> None:
    """Of the language, the device, and the pipeline that a pipe comes from."""
    old = quickstart(["tagger", "ner"])
    old["vars"] = {"lang": "de", "allocator": None, "trained": str(trained)}
    old["nlp"]["lang"] = "${vars.lang}"
    old["system"]["gpu_allocator"] = "${vars.allocator}"
    old["components"]["ner"] = {"source": "${vars.trained}"}
    path = write(old, tmp_path)
    config, _ = swapped(path)
    assert config["nlp"]["lang"] == "${vars.lang}"
    assert config["components"]["ner"]["source"] == "${vars.trained}"
    assert config["paths"]["encoder"] == "distilbert-base-multilingual-cased"
    assert config["components"]["transformer"]["model"]["window"] == 192
    old["nlp"]["lang"] = "${vars.none}"
    assert "old.cfg cannot be read" in refused(old, tmp_path)


@pytest.mark.slow
def test_variables_that_name_an_encoder_and_a_language(tmp_path: Path) -> None:
    english_tokenizer().save(str(tmp_path / "tokenizer.json"))
    old = quickstart(["tagger"])
    old["vars"] = {"lang": "de", "english": str(tmp_path)}
    old["nlp"]["lang"] = "${vars.lang}"
    written = init_config(
        "train", "-", "--from", write(old, tmp_path), "--encoder", "${vars.english}"
    )
    assert "German (lang = 'de')" in " ".join(written.output.split())


# Learning rates, and leftovers of the old encoder


def test_windows_fit_the_encoder_of_the_config(tmp_path: Path) -> None:
    encoder = write_encoder(tmp_path / "encoder", "distilbert", positions=40)
    for name in (str(encoder), "${paths.mine}"):
        config = transformer_config(*(transformer_listener("reduce_mean.v1") for _ in range(2)))
        config["paths"]["mine"] = str(encoder)
        model = config["components"]["transformer"]["model"]
        spans = {"@span_getters": "spacy-transformers.doc_spans.v1"}
        model |= {"name": name, "get_spans": spans}
        new, output = swapped(write(config, tmp_path))
        model = new["components"]["transformer"]["model"]
        assert (model["window"], model["overlap"]) == (40, 10)
        assert "gives way to window = 40, overlap = 10, in pieces" in output


def test_other_optimizers_and_schedules(tmp_path: Path) -> None:
    old = quickstart(["tagger"])
    old["training"]["optimizer"] = {"@optimizers": "RAdam.v1", "learn_rate": 0.002, "beta1": 0.5}
    config, output = swapped(write(old, tmp_path), "-o", "accuracy")
    assert "'RAdam.v1' gives way to Adam.v1" in output
    optimizer = config["training"]["optimizer"]
    assert (optimizer["@optimizers"], optimizer["beta1"]) == ("Adam.v1", 0.9)
    assert optimizer["learn_rate"]["initial_rate"] == 0.002
    assert config["components"]["transformer"]["model"]["learn_rate_scale"] == 0.05
    warmup = {"@schedules": "warmup_linear.v1", "warmup_steps": 700, "total_steps": 800}
    warmup["initial_rate"] = 0.003
    old["training"]["optimizer"] = {"@optimizers": "Adam.v1", "learn_rate": warmup, "beta2": 0.99}
    old["training"]["max_steps"] = 800
    optimizer = swapped(write(old, tmp_path))[0]["training"]["optimizer"]
    assert optimizer["beta2"] == 0.99
    assert optimizer["learn_rate"]["warmup_steps"] == 80
    assert optimizer["learn_rate"]["initial_rate"] == 0.003


def test_weights_of_the_old_encoder(tmp_path: Path) -> None:
    old = quickstart(["tagger"], pretraining=True)
    old["paths"]["init_tok2vec"] = "pretrained.bin"
    config, output = swapped(write(old, tmp_path))
    assert config["pretraining"] == {}
    assert config["initialize"]["init_tok2vec"] is None
    assert "[pretraining] is for the old encoder" in output
    assert "init_tok2vec has weights of another encoder" in output


def test_a_config_that_is_not_filled_in(tmp_path: Path, encoder: Path, corpus: Path) -> None:
    """As the page of spaCy's quickstart gives it, for `spacy init fill-config`."""
    text = """
        [nlp]
        lang = "en"
        pipeline = ["tok2vec", "tagger"]
        [components]
        [components.tok2vec]
        factory = "tok2vec"
        [components.tagger]
        factory = "tagger"
        [components.tagger.model]
        @architectures = "spacy.Tagger.v2"
        [components.tagger.model.tok2vec]
        @architectures = "spacy.Tok2VecListener.v1"
        width = 96
        [corpora]
        [corpora.train]
        @readers = "spacy.Corpus.v1"
        path = ${paths.train}
        [corpora.dev]
        @readers = "spacy.Corpus.v1"
        path = ${paths.dev}
        [paths]
        train = null
        dev = null
        """
    old = load_config_from_str("\n".join(map(str.strip, text.splitlines())))
    config, _ = swapped(write(old, tmp_path))
    assert listens(config, "tagger")
    filled = tmp_path / "filled.cfg"
    fill_config(filled, tmp_path / "new.cfg")
    nlp = learn(load_config(filled, interpolate=False), encoder, corpus)
    assert nlp.get_pipe("transformer").listening_components == ["tagger"]


# Refusals


def transformer_listener(pooling: str, **settings: Any) -> dict[str, Any]:
    listener = {"@architectures": "spacy-transformers.TransformerListener.v1"}
    return {**listener, "pooling": {"@layers": pooling}, **settings}


def transformer_config(*listeners: dict[str, Any]) -> Config:
    """A config of spacy-transformers, which need not be installed."""
    config = quickstart(["tagger", "ner"])
    model = {"@architectures": "spacy-transformers.TransformerModel.v3", "name": "roberta-base"}
    components = {"transformer": {"factory": "transformer", "model": model}}
    for name, listener in zip(("tagger", "ner"), listeners, strict=True):
        components[name] = config["components"][name]
        components[name]["model"]["tok2vec"] = listener
    config["components"] = components
    config["nlp"]["pipeline"] = [*components]
    return config


def test_other_batches(tmp_path: Path) -> None:
    old = transformer_config(*(transformer_listener("reduce_mean.v1") for _ in range(2)))
    old["components"]["transformer"]["max_batch_items"] = 512
    _, output = swapped(write(old, tmp_path))
    assert "max_batch_items = 512 gives way to max_batch_pieces = null" in output


def test_poolings_and_gradients(tmp_path: Path) -> None:
    listeners = [transformer_listener("reduce_last.v1", grad_factor=0.0) for _ in range(2)]
    config, output = swapped(write(transformer_config(*listeners), tmp_path))
    assert config["components"]["transformer"]["model"]["pooling"] == "last"
    assert config["components"]["transformer"]["model"]["frozen"]
    assert "no pipe trained the encoder" in output
    listeners[0]["grad_factor"] = 1.0
    listeners[1]["grad_factor"] = 0.5
    config, output = swapped(write(transformer_config(*listeners), tmp_path))
    assert not config["components"]["transformer"]["model"]["frozen"]
    assert "grad_factor of 'ner' has no counterpart" in output
    other = transformer_listener("reduce_mean.v1")
    output = refused(transformer_config(listeners[0], other), tmp_path)
    assert "'tagger' 'reduce_last.v1', 'ner' 'reduce_mean.v1'. Give all listeners" in output
    own = transformer_listener("my_pooling.v1")
    assert "'my_pooling.v1'" in refused(transformer_config(own, own), tmp_path)


def test_transformers_inside_pipes(tmp_path: Path) -> None:
    own = {"@architectures": "spacy-transformers.Tok2VecTransformer.v3", "name": "bert-base-cased"}
    own |= {"pooling": {"@layers": "reduce_first.v1"}, "mixed_precision": True}
    own["get_spans"] = {"@span_getters": "spacy-transformers.doc_spans.v1"}
    own["tokenizer_config"] = {"use_fast": False}
    old = transformer_config(own, {**own})
    del old["components"]["transformer"]
    old["nlp"]["pipeline"].remove("transformer")
    old["training"]["optimizer"]["learn_rate"] = 2e-5
    config, output = swapped(write(old, tmp_path))
    assert config["nlp"]["pipeline"] == ["transformer", "tagger", "ner"]
    assert config["paths"]["encoder"] == "bert-base-cased"
    model = config["components"]["transformer"]["model"]
    assert (model["pooling"], model["learn_rate_scale"]) == ("first", 0.02)
    assert model["mixed_precision"]
    assert output.count("get_spans (@span_getters = spacy-transformers.doc_spans.v1)") == 1
    assert output.count("tokenizer_config of the transformer has no counterpart") == 1
    assert listens(config, "tagger")
    assert listens(config, "ner")
    assert "'ner' had an encoder of its own" in output
    other = transformer_config(own, {**own, "name": "roberta-base"})
    del other["components"]["transformer"]
    other["nlp"]["pipeline"].remove("transformer")
    assert "bert-base-cased, roberta-base. Choose one with --encoder" in refused(other, tmp_path)
    assert swapped(tmp_path / "old.cfg", "--encoder", "x")[0]["paths"]["encoder"] == "x"


def changed(**components: Any) -> Config:
    config = quickstart(["tagger", "ner"])
    for pipe in ("tagger", "ner"):
        config["components"][pipe]["model"]["tok2vec"]["width"] = 96  # no variable
    for name, settings in components.items():
        config["components"][name] = settings
        if name not in config["nlp"]["pipeline"]:
            config["nlp"]["pipeline"].insert(0, name)
    return config


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (changed(other={"factory": "tok2vec"}), "'tok2vec' and 'other' are encoders"),
        (
            changed(tok2vec={"factory": "distil_transformer"}),
            "'tok2vec' is a distil_transformer already",
        ),
        (changed(tok2vec={"factory": "curated_transformer"}), "is of spacy-curated-transformers"),
        (changed(transformer={"factory": "sentencizer"}), "is the name of another component"),
        (
            changed(mine={"factory": "x", "width": "${components.tok2vec.model.encode.width}"}),
            "A variable refers to a setting of 'tok2vec' that is gone",
        ),
        (
            changed(
                mine={
                    "factory": "x",
                    "model": {"@architectures": "spacy-curated-transformers.ScalarWeight.v1"},
                }
            ),
            "[components.mine.model] has the architecture 'spacy-curated-transformers.Scal",
        ),
    ],
)
def test_what_cannot_be_swapped(config: Config, message: str, tmp_path: Path) -> None:
    output = refused(config, tmp_path)
    assert message in output
    assert "old.cfg cannot be taken over" in output


def test_other_configs_are_refused(tmp_path: Path) -> None:
    nlp: Any = spacy.blank("en")
    nlp.add_pipe("sentencizer")
    assert "There is no encoder to swap" in refused(nlp.config, tmp_path)
    steps = quickstart(["tagger"])
    steps["training"]["max_steps"] = 0
    assert "training.max_steps = 0: the learning rate falls to 0" in refused(steps, tmp_path)
    (tmp_path / "old.cfg").write_text("[teacher]\nname = 1\n")
    result = init_config("train", "-", "--from", tmp_path / "old.cfg")
    assert "is no config of a pipeline" in " ".join(result.output.split())
    result = init_config("train", "-", "--from", tmp_path / "none.cfg")
    assert "none.cfg cannot be read" in " ".join(result.output.split())
    result = init_config("train", "-", "--from", tmp_path / "old.cfg", "--lang", "de")
    assert "--lang: the config of --from has its own" in " ".join(result.output.split())
