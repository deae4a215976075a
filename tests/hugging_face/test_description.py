"""A model and the pipeline that its config makes of it."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from spacy_distil.errors import ConfigError, DistilError, WeightsError
from spacy_distil.hugging_face import describe, is_hugging_face, load_classifier
from tests.hugging_face.models import write_model, write_modules
from tests.util import make_nlp, write_encoder

TOKENS, TEXTS = "TokenClassification", "SequenceClassification"


def change_config(model: Path, **settings: Any) -> Path:
    path = model / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, **settings}))
    return model


@pytest.fixture
def token_model(tmp_path: Path) -> Path:
    return write_model(tmp_path, "bert", TOKENS, ["O", "B-PER", "I-PER"])


@pytest.fixture
def text_model(tmp_path: Path) -> Path:
    return write_model(tmp_path, "bert", TEXTS, ["bad", "good", "neither"])


def test_which_names_are_models(token_model: Path, tmp_path: Path) -> None:
    assert is_hugging_face(token_model)
    assert is_hugging_face("dslim/bert-base-NER")
    nlp = make_nlp(token_model.parent / "encoder", ["tagger"])
    nlp.to_disk(tmp_path / "pipeline")
    (tmp_path / "training").mkdir()
    for other in (
        tmp_path / "pipeline",
        tmp_path / "missing",
        f"{tmp_path.name}",
        "en_core_web_sm",
        "./model",
        "a/b/c",
        "~/model",
    ):
        assert not is_hugging_face(other), other
    here = os.getcwd()
    try:
        os.chdir(tmp_path)
        assert not is_hugging_face("training/model-best")
    finally:
        os.chdir(here)


@pytest.mark.parametrize(
    ("kind", "labels", "settings", "pipe"),
    [
        (TOKENS, ["O", "B-PER", "I-PER"], {}, "distil_ner"),
        (TOKENS, ["NOUN", "VERB", "PUNCT"], {}, "morphologizer"),
        (TOKENS, ["NN", "VB", "."], {}, "tagger"),
        (TEXTS, ["bad", "good"], {}, "textcat"),
        (TEXTS, ["a", "b"], {"problem_type": "multi_label_classification"}, "textcat_multilabel"),
    ],
)
def test_pipes(kind: str, labels: list[str], settings: Any, pipe: str, tmp_path: Path) -> None:
    model = write_model(tmp_path, "bert", kind, labels, **settings)
    description = describe(str(model), "eng")
    assert description.pipe == pipe
    assert description.lang == "en"
    assert description.labels == tuple(labels)
    assert description.encoding["pooling"] == ("first" if kind == TOKENS else "cls")


def test_labels_are_in_the_order_of_their_numbers(text_model: Path) -> None:
    change_config(text_model, id2label={"2": "neither", "0": "bad", "1": "good"})
    assert describe(str(text_model), "en").labels == ("bad", "good", "neither")


def test_the_window_is_the_one_of_the_training(token_model: Path) -> None:
    assert describe(str(token_model), "en").encoding["window"] is None
    path = token_model / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({**settings, "model_max_length": 40}))
    assert describe(str(token_model), "en").encoding["window"] == 40
    assert describe(str(token_model), "en").encoding["overlap"] == 10
    assert describe(str(token_model), "en", window=64).encoding["window"] == 64


@pytest.mark.parametrize(
    ("settings", "pairs", "pipe", "output"),
    [
        ({"id2label": {"0": "no", "1": "Entailment"}}, False, "distil_pair", "classes"),
        ({"id2label": {"0": "no", "1": "yes"}}, True, "distil_pair", "classes"),
        ({"id2label": {"0": "no", "1": "yes"}}, False, "textcat", None),
        ({"id2label": {"0": "score"}}, True, "distil_pair", "number"),
        (
            {
                "id2label": {"0": "score"},
                "sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Sigmoid"},
            },
            True,
            "distil_pair",
            "probability",
        ),
        ({"architectures": ["BertForQuestionAnswering"]}, False, "distil_qa", None),
    ],
)
def test_models_that_read_two_texts(
    settings: dict[str, Any], pairs: bool, pipe: str, output: str | None, text_model: Path
) -> None:
    change_config(text_model, **settings)
    description = describe(str(text_model), "en", pairs=pairs)
    assert description.pipe == pipe
    assert description.settings.get("output") == output
    assert description.reads_pairs == (pipe != "textcat")


def test_pairs_are_for_classifiers_of_texts(text_model: Path) -> None:
    change_config(text_model, problem_type="multi_label_classification")
    with pytest.raises(ConfigError, match="several labels at once"):
        describe(str(text_model), "en", pairs=True)
    change_config(text_model, architectures=["BertForTokenClassification"])
    with pytest.raises(ConfigError, match=r"--pairs: .*and only a text classifier"):
        describe(str(text_model), "en", pairs=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"architectures": ["BertForMaskedLM"]}, r"BertForMaskedLM.*pieces.*--encoder"),
        ({"architectures": ["BertForMultipleChoice"]}, "several texts"),
        ({"architectures": ["BertForTime"]}, "no pipe is known"),
        ({"architectures": None}, 'names no "architectures"'),
        ({"is_encoder_decoder": True}, "has a decoder"),
        ({"id2label": {"0": "A", "1": "A"}}, "several labels of the name 'A'"),
        ({"id2label": {"0": "A", "1": ""}}, "a label without a name"),
        ({"id2label": {"0": "A", "2": "B"}}, "numbers its labels"),
        ({"model_type": "own", "auto_map": {"AutoModel": "own.Model"}}, "code of its own"),
        ({"problem_type": "regression"}, "regression"),
        ({"id2label": {"0": "score"}}, r"regression.*multi_label_classification"),
        ({"model_type": "roberta-prelayernorm"}, "'roberta-prelayernorm' is not known"),
    ],
)
def test_models_that_are_refused(settings: Any, message: str, text_model: Path) -> None:
    change_config(text_model, **settings)
    with pytest.raises(ConfigError, match=message):
        describe(str(text_model), "en")


def test_a_language_is_needed(token_model: Path) -> None:
    with pytest.raises(ConfigError, match="--lang"):
        describe(str(token_model), None)
    with pytest.raises(ConfigError, match="no such language"):
        describe(str(token_model), "zz")
    with pytest.raises(ConfigError, match=r"no directory trainng/model-best here.*--lang"):
        describe("trainng/model-best", None)


def test_a_tokenizer_of_spacy_is_needed(token_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pythainlp.tokenize", None)
    with pytest.raises(ConfigError, match=r"lang = 'th'.*PyThaiNLP"):
        load_classifier(token_model, "th")


def test_labels_that_the_config_lacks(tmp_path: Path) -> None:
    """transformers then takes two for granted."""
    model = write_model(tmp_path, "distilbert", TEXTS, ["a", "b", "c"])
    path = model / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in config.items() if "2" not in k}))
    with pytest.raises(WeightsError, match=r"classifier\.bias.*id2label .* \(now 2\)"):
        load_classifier(model, "en")


def test_heads_that_are_refused(tmp_path: Path) -> None:
    for kind, labels in ((TOKENS, ["O", "I-PER"]), (TEXTS, ["bad", "good"])):
        model = write_model(tmp_path / kind, "modernbert", kind, labels)
        with pytest.raises(ConfigError, match=r"cannot become a pipeline.*head"):
            load_classifier(model, "en")


def test_an_activation_that_is_refused(tmp_path: Path) -> None:
    model = write_model(tmp_path, "deberta-v2", TEXTS, ["a", "b"], pooler_hidden_act="silu")
    with pytest.raises(ConfigError, match=r"'silu'.*tanh, gelu, relu"):
        describe(str(model), "en")


def test_weights_that_are_refused(token_model: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = token_model / "model.safetensors"
    weights = load_file(path)
    save_file({k: v for k, v in weights.items() if k != "classifier.bias"}, path, {"format": "pt"})
    with pytest.raises(WeightsError, match=r"classifier\.bias"):
        load_classifier(token_model, "en")
    path.unlink()
    import torch

    torch.save(weights, token_model / "pytorch_model.bin")
    with pytest.raises(WeightsError, match="Pickled weights"):
        load_classifier(token_model, "en")


def test_a_tokenizer_is_needed(token_model: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (token_model / name).unlink(missing_ok=True)
    with pytest.raises(DistilError, match="tokenizer"):
        load_classifier(token_model, "en")


# Sentence encoders


@pytest.mark.parametrize("is_new", [False, True])
@pytest.mark.parametrize(
    ("mode", "pooling"), [("mean_tokens", "mean"), ("cls_token", "first"), ("max_tokens", "max")]
)
def test_poolings_of_sentence_encoders(
    mode: str, pooling: str, is_new: bool, tmp_path: Path
) -> None:
    model = write_encoder(tmp_path / "model", "bert")
    assert describe(str(model), "en").encoding["pooling"] == "mean"
    modes: dict[str, Any] = {"pooling_mode_cls_token": False, f"pooling_mode_{mode}": True}
    if is_new:  # as version 5.2 of sentence-transformers writes it
        modes = {"pooling_mode": mode.partition("_")[0], "include_prompt": True}
    write_modules(model, "Transformer", "Pooling", "Normalize", **modes)
    (model / "sentence_bert_config.json").write_text('{"max_seq_length": 32}')
    encoding = describe(str(model), "en").encoding
    assert encoding == {"window": 32, "overlap": 8, "pooling": "mean", "doc_pooling": pooling}
    nlp = load_classifier(model, "en")
    assert nlp.pipe_names == ["transformer", "vectors"]
    assert nlp("Ann visited Rome").vector_norm == pytest.approx(1)


@pytest.mark.parametrize(
    ("kinds", "modes", "message"),
    [
        (("Transformer", "Pooling"), {"pooling_mode_lasttoken": True}, "pools with lasttoken"),
        (
            ("Transformer", "Pooling", "Normalize", "Dense"),
            {"pooling_mode_mean_tokens": True},
            "Pooling, Normalize, Dense",
        ),
        (
            ("Transformer", "Pooling"),
            {"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True},
            "pools with mean, max",
        ),
        (("Transformer", "Pooling"), {"pooling_mode": "weightedmean"}, "pools with weightedmean"),
        (("Transformer", "Pooling"), {"pooling_mode": ["cls", "max"]}, "pools with cls, max"),
        (("Transformer",), {}, "has the modules Transformer"),
        (("Transformer", "Pooling"), {}, "pools with nothing"),
    ],
)
def test_sentence_encoders_that_are_refused(
    kinds: tuple[str, ...], modes: dict[str, bool], message: str, tmp_path: Path
) -> None:
    model = write_modules(write_encoder(tmp_path / "model", "bert"), *kinds, **modes)
    with pytest.raises(ConfigError, match=message):
        describe(str(model), "en")


def test_damaged_settings_are_named(tmp_path: Path) -> None:
    model = write_encoder(tmp_path / "model", "bert")
    (model / "modules.json").write_text("{")
    with pytest.raises(WeightsError, match=r"modules\.json is not valid JSON"):
        describe(str(model), "en")
