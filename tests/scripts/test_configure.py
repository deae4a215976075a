"""Templates cut down to what a corpus annotates still make pipelines that spaCy trains."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from spacy.tokens import Doc
from spacy.training import Example
from spacy.util import get_lang_class, load_config, load_model_from_config
from thinc.api import Config

from project.training import configure, read_summary
from scripts.configure import write_configs
from spacy_distil.errors import ConfigError, CorpusError

ROOT = Path(__file__).resolve().parents[2]
TEMPLATE = """
[nlp]
lang = "en"
pipeline = ["tok2vec","morphologizer","tagger","ner","textcat"]

[components]

[components.tok2vec]
factory = "tok2vec"

[components.tok2vec.model]
@architectures = "spacy.HashEmbedCNN.v2"
width = 16
depth = 1
embed_size = 50
window_size = 1
maxout_pieces = 2
subword_features = true
pretrained_vectors = null

[components.morphologizer]
factory = "morphologizer"

[components.tagger]
factory = "tagger"

[components.ner]
factory = "ner"

[components.textcat]
factory = "textcat"

[components.textcat.model]
@architectures = "spacy.TextCatReduce.v1"
exclusive_classes = true
use_reduce_first = false
use_reduce_last = false
use_reduce_max = false
use_reduce_mean = true
nO = null

[components.textcat.model.tok2vec]
@architectures = "spacy.Tok2VecListener.v1"
width = ${components.tok2vec.model.width}

[training]
frozen_components = ["tagger"]
annotating_components = ["tok2vec", "textcat"]

[training.score_weights]
pos_acc = 0.1
tag_acc = 0.9

[initialize]

[initialize.components]

[initialize.components.tagger]

[initialize.components.textcat]
"""


def summary(layers: str, *, scored: str | None = None, exclusive: bool = True) -> dict[str, Any]:
    """A `corpus.json` with these space-separated layers."""
    names = ("pos", "tag", "ents", "cats")

    def present(chosen: str) -> dict[str, bool]:
        return {**{name: name in chosen.split() for name in names}, "cats_exclusive": exclusive}

    return {
        "lang": "en",
        "layers": present(layers),
        "scored": present(layers if scored is None else scored),
    }


def template() -> Config:
    return Config().from_str(TEMPLATE, interpolate=False)


def weights(config: Config) -> dict[str, float]:
    return {name: value for name, value in config["training"]["score_weights"].items() if value}


@pytest.mark.parametrize(
    ("layers", "pipes", "scores"),
    [
        (
            "pos tag ents cats",
            "morphologizer tagger ner textcat",
            "pos_acc tag_acc ents_f cats_score",
        ),
        ("pos ents cats", "morphologizer ner textcat", "pos_acc ents_f cats_score"),
        ("ents", "ner", "ents_f"),
        ("cats", "textcat", "cats_score"),
    ],
)
def test_pipes_and_weights_follow_the_layers(layers: str, pipes: str, scores: str) -> None:
    config = configure(template(), summary(layers), lang="de")
    assert config["nlp"]["pipeline"] == ["tok2vec", *pipes.split()]
    assert list(config["components"]) == ["tok2vec", *pipes.split()]
    assert config["nlp"]["lang"] == "de"
    found = weights(config)
    assert sorted(found) == sorted(scores.split())
    assert sum(found.values()) == pytest.approx(1.0, abs=1e-3)
    assert len(set(found.values())) == 1
    settings = [*config["training"]["frozen_components"], *config["initialize"]["components"]]
    assert set(settings) <= set(pipes.split())


def test_spacy_adds_no_weight_of_its_own() -> None:
    """spaCy gives morph_acc half of the morphologizer's weight, and it is never annotated here."""
    config = configure(template(), summary("pos ents"))
    nlp = load_model_from_config(config, auto_fill=True)
    assert {k: v for k, v in nlp.config["training"]["score_weights"].items() if v} == {
        "pos_acc": 0.5,
        "ents_f": 0.5,
    }


def test_independent_labels_make_a_multilabel_classifier() -> None:
    config = configure(template(), summary("cats", exclusive=False))
    assert config["nlp"]["pipeline"] == ["tok2vec", "textcat_multilabel"]
    settings = config["components"]["textcat_multilabel"]
    assert settings["factory"] == "textcat_multilabel"
    assert settings["model"]["exclusive_classes"] is False
    assert config["training"]["annotating_components"] == ["tok2vec", "textcat_multilabel"]
    assert "textcat_multilabel" in config["initialize"]["components"]
    # And it learns documents with two labels and with none.
    nlp = load_model_from_config(config, auto_fill=True)
    examples = []
    for values in ((1.0, 1.0), (0.0, 0.0)):
        doc = Doc(nlp.vocab, words=["some", "text"])
        doc.cats = dict(zip("ab", values, strict=True))
        examples.append(Example(nlp.make_doc("some text"), doc))
    nlp.initialize(lambda: examples)
    losses = nlp.update(examples)
    assert losses["textcat_multilabel"] > 0


def test_a_multilabel_classifier_has_a_threshold_of_its_own() -> None:
    """That of `textcat`, 0, would give each doc every label; one of the user's own stays."""
    config = load_config(ROOT / "configs" / "train.cfg", interpolate=False)
    assert config["components"]["textcat"]["threshold"] == 0.0
    configured = configure(config, summary("cats", exclusive=False))
    configured["paths"]["encoder"] = "nowhere"
    nlp = load_model_from_config(configured, auto_fill=True)
    filled = nlp.get_pipe_config("textcat_multilabel")
    assert filled["threshold"] == 0.5
    assert filled["scorer"] == {"@scorers": "spacy.textcat_multilabel_scorer.v2"}
    configured["components"]["textcat_multilabel"]["threshold"] = 0.3
    again = configure(configured, summary("cats", exclusive=False))
    assert again["components"]["textcat_multilabel"]["threshold"] == 0.3
    back = configure(configured, summary("cats", exclusive=True))
    assert load_model_from_config(back).get_pipe_config("textcat")["threshold"] == 0.0


def test_the_template_is_left_alone() -> None:
    original = template()
    configure(original, summary("ents"))
    assert original == template()


def test_what_dev_cannot_score_has_no_weight() -> None:
    config = configure(template(), summary("pos ents", scored="ents"))
    assert config["nlp"]["pipeline"] == ["tok2vec", "morphologizer", "ner"]
    assert weights(config) == {"ents_f": 1.0}
    with pytest.raises(CorpusError, match="nothing could be scored while training"):
        configure(template(), summary("pos", scored=""))


def test_nothing_to_train_is_refused() -> None:
    with pytest.raises(CorpusError, match="none of the annotations"):
        configure(template(), summary(""))
    short = template()
    short["nlp"]["pipeline"] = ["tok2vec", "ner"]
    with pytest.raises(ConfigError, match="no pipe for what the corpus annotates: pos"):
        configure(short, summary("pos"))


def test_dangling_reference_is_refused() -> None:
    config = template()
    config["components"]["ner"]["model"] = {"width": "${components.tagger.width}"}
    with pytest.raises(ConfigError, match="refers to a block that was removed"):
        configure(config, summary("ents"))


@pytest.mark.parametrize("content", ["{", "[]", '{"layers": {}}'])
def test_broken_summary_names_the_file(tmp_path: Path, content: str) -> None:
    (tmp_path / "corpus.json").write_text(content, encoding="utf8")
    with pytest.raises(CorpusError, match=r"corpus\.json: expected an object with 'layers'"):
        read_summary(tmp_path)
    with pytest.raises(CorpusError, match="Run the project's 'corpus' command"):
        read_summary(tmp_path / "elsewhere")


def test_the_projects_own_templates(tmp_path: Path) -> None:
    (tmp_path / "corpus.json").write_text(json.dumps(summary("pos ents cats")), encoding="utf8")
    templates = [ROOT / "configs" / "train.cfg", ROOT / "configs" / "cnn.cfg"]
    for path in write_configs(tmp_path, tmp_path / "out", templates):
        config = load_config(path, interpolate=False)
        assert config["nlp"]["pipeline"][1:] == ["morphologizer", "ner", "textcat"]
        assert "${" in path.read_text(encoding="utf8")  # variables stay variables
    with pytest.raises(ConfigError, match="No such config"):
        write_configs(tmp_path, tmp_path / "out", [tmp_path / "none.cfg"])


def test_distil_ner_in_place_of_ner(tmp_path: Path) -> None:
    """Under the same name, on the same vectors; a pipeline of spaCy's own layers keeps its own."""
    (tmp_path / "corpus.json").write_text(json.dumps(summary("pos ents")), encoding="utf8")
    templates = [ROOT / "configs" / "train.cfg", ROOT / "configs" / "cnn.cfg"]
    ours, cnn = write_configs(tmp_path, tmp_path / "out", templates, ner="distil_ner")
    config = load_config(ours, interpolate=False)
    before = load_config(templates[0], interpolate=False)
    assert config["nlp"]["pipeline"] == ["transformer", "morphologizer", "ner"]
    head = config["components"]["ner"]
    assert head["factory"] == "distil_ner"
    assert head["model"]["@architectures"] == "spacy.Tagger.v2"
    assert head["model"]["tok2vec"] == before["components"]["ner"]["model"]["tok2vec"]
    assert weights(config) == {"pos_acc": 0.5, "ents_f": 0.5}
    assert load_config(cnn)["components"]["ner"]["factory"] == "ner"
    nlp = load_model_from_config(
        load_config(ours, overrides={"paths.encoder": "nowhere"}), auto_fill=True
    )
    assert nlp.get_pipe_meta("ner").factory == "distil_ner"
    # No weight of spaCy's own is added.
    assert {k for k, v in nlp.config["training"]["score_weights"].items() if v} == {
        "pos_acc",
        "ents_f",
    }


def test_a_template_with_distil_ner_keeps_it() -> None:
    config = template()
    config["components"]["ner"]["factory"] = "distil_ner"
    configured = configure(config, summary("ents"))
    assert configured["components"]["ner"]["factory"] == "distil_ner"
    assert weights(configured) == {"ents_f": 1.0}
    assert configure(config, summary("cats"))["nlp"]["pipeline"] == ["tok2vec", "textcat"]


def test_unknown_entity_recognizer_is_refused() -> None:
    with pytest.raises(ConfigError, match="one of ner, distil_ner as entity recognizer, got 'crf'"):
        configure(template(), summary("ents"), ner="crf")


@pytest.mark.parametrize("name", ["train.cfg", "pipeline.cfg", "cnn.cfg"])
@pytest.mark.parametrize("lang", ["zh", "ja", "de", "xx"])
def test_the_tokenizer_is_that_of_the_language(name: str, lang: str) -> None:
    """The templates are English, and name its tokenizer."""
    layers = {"pos": True}
    summary = {"lang": lang, "layers": layers, "scored": layers}
    template = load_config(ROOT / "configs" / name, interpolate=False)
    config = configure(template, summary)
    defaults = get_lang_class(lang).default_config
    assert config["nlp"]["lang"] == lang
    for section in ("nlp", "initialize"):
        if "tokenizer" in template.get(section, {}):
            assert config[section]["tokenizer"] == defaults[section]["tokenizer"]


def test_a_tokenizer_of_the_template_s_own_stays() -> None:
    template = load_config(ROOT / "configs" / "train.cfg", interpolate=False)
    own = {"@tokenizers": "my_tokenizer.v1"}
    template["nlp"]["tokenizer"] = dict(own)
    summary = {"lang": "zh", "layers": {"pos": True}, "scored": {"pos": True}}
    assert configure(template, summary)["nlp"]["tokenizer"] == own
