"""Pipelines are trained with spacy-transformers here, converted, and run side by side."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import spacy
import transformers
from spacy.language import Language
from spacy.tokens import Doc, DocBin
from spacy.util import fix_random_seed
from thinc.api import Config
from typer.testing import CliRunner

from spacy_distil.cli import distil_cli
from spacy_distil.component.shim import EncoderShim, get_encoder
from spacy_distil.errors import ConfigError, CorpusError, MissingExtraError
from tests.own_code import make_own
from tests.util import SENTENCES, head_config, make_examples, random_text, registry, write_encoder

pytest.importorskip(
    "spacy_transformers", reason="spacy-transformers is not installed: nothing to convert"
)

from spacy_transformers.layers import TransformerModel

from spacy_distil.export.convert import convert, convert_and_quantize
from spacy_distil.export.quantize import quantize

DOC_SPANS = {"@span_getters": "spacy-transformers.doc_spans.v1"}
SENT_SPANS = {"@span_getters": "spacy-transformers.sent_spans.v1"}
STRIDED_SPANS = {"@span_getters": "spacy-transformers.strided_spans.v1", "window": 40, "stride": 30}
# Has few special cases of tokenization, which each loading of a pipeline would read.
LANG = "xx"
HEADS = {"tagger": "mean", "ner": "mean", "textcat": "mean"}
# Of at most 40 tokens and 60 pieces, one sentence and one window.
SHORT = [*SENTENCES[:2], SENTENCES[4], "Ann visited Rome in spring.", "We like pizza in Oslo"]


def listener(pooling: str, **settings: Any) -> dict[str, Any]:
    return {
        "@architectures": "spacy-transformers.TransformerListener.v1",
        "pooling": {"@layers": f"reduce_{pooling}.v1"},
        **settings,
    }


def add_transformer(
    nlp: Any, encoder: Path, name: str = "transformer", spans: Any = DOC_SPANS, **config: Any
) -> None:
    model = {
        "@architectures": "spacy-transformers.TransformerModel.v3",
        "name": str(encoder),
        "get_spans": spans,
        # Or the tokenizer would tell a DistilBERT about token types, which it does not take.
        "tokenizer_config": {
            "use_fast": True,
            "model_input_names": ["input_ids", "attention_mask"],
        },
        **config,
    }
    nlp.add_pipe("transformer", name=name, config={"model": model})


def train(nlp: Any, steps: int = 20, learn_rate: float = 3e-3) -> Any:
    """A few steps: enough for heads that say different things of different tokens."""
    fix_random_seed(0)
    examples = make_examples(nlp)
    optimizer = nlp.initialize(lambda: examples)
    optimizer.learn_rate = learn_rate
    annotates = [name for name in nlp.pipe_names if name == "sentencizer"]
    for _ in range(steps):
        nlp.update(examples, sgd=optimizer, annotates=annotates)
    return nlp


def make_trf(
    encoder: Path, heads: dict[str, str] = HEADS, spans: Any = DOC_SPANS, **config: Any
) -> Any:
    """A trained pipeline. heads: pooling of each pipe."""
    nlp = spacy.blank(LANG)
    if spans == SENT_SPANS:
        nlp.add_pipe("sentencizer")
    add_transformer(nlp, encoder, spans=spans, **config)
    for pipe, pooling in heads.items():
        shape = "tagger" if pipe == "senter" else pipe
        nlp.add_pipe(pipe, config=head_config(shape, listener(pooling)))
    return train(nlp)


def reference_vectors(nlp: Any, docs: Sequence[Doc], pooling: str) -> list[np.ndarray]:
    """Token vectors as a head of spacy-transformers sees them."""
    reads = registry.architectures.get("spacy-transformers.TransformerListener.v1")(
        registry.layers.get(f"reduce_{pooling}.v1")()
    )
    reads.get_ref("listener").set_dim("nO", nlp.get_pipe("transformer").model.get_dim("nO"))
    return reads.predict(list(docs))


def assert_same_predictions(original: Any, candidate: Any, texts: Sequence[str]) -> None:
    theirs, ours = list(original.pipe(texts)), list(candidate.pipe(texts))
    for left, right in zip(theirs, ours, strict=True):
        assert [token.tag_ for token in left] == [token.tag_ for token in right]
        assert [token.ent_iob_ + token.ent_type_ for token in left] == [
            token.ent_iob_ + token.ent_type_ for token in right
        ]
        assert left.cats == pytest.approx(right.cats, abs=1e-4)
    if "tagger" in original.pipe_names:
        # Or equal predictions would say nothing.
        assert len({token.tag_ for doc in theirs for token in doc}) > 2


def assert_same_vectors(
    original: Any, candidate: Any, texts: Sequence[str], pooling: str = "mean"
) -> None:
    docs = list(original.pipe(texts))
    for doc, expected in zip(docs, reference_vectors(original, docs, pooling), strict=True):
        assert np.abs(expected).max(initial=1) > 0.1
        np.testing.assert_allclose(candidate(doc.text).tensor, expected, atol=1e-4)


def parameters(model: Any) -> list[np.ndarray]:
    """Of the layers of a head, in order; encoders inside it are none of them."""
    return [
        node.get_param(name)
        for node in model.walk()
        for name in node.param_names
        if node.has_param(name)
    ]


@pytest.mark.parametrize(
    ("family", "spans"),
    [
        ("bert", DOC_SPANS),
        ("roberta", DOC_SPANS),
        ("distilbert", DOC_SPANS),
        ("bert", STRIDED_SPANS),
        ("bert", SENT_SPANS),
    ],
)
def test_predictions_and_vectors_are_the_same(
    encoder_dirs: dict[str, Path], converted: Any, family: str, spans: Any
) -> None:
    original = make_trf(encoder_dirs[family], spans=spans)
    conversion, candidate = converted(original)
    assert candidate.pipe_names == original.pipe_names
    assert conversion.shared == {"transformer": "mean"}
    assert conversion.private == {}
    assert len(conversion.notes) == (spans == SENT_SPANS)
    assert_same_predictions(original, candidate, SHORT)
    assert_same_vectors(original, candidate, SHORT)
    for name in HEADS:
        theirs, ours = (parameters(nlp.get_pipe(name).model) for nlp in (original, candidate))
        assert len(theirs) == len(ours) > 0
        assert all(np.array_equal(left, right) for left, right in zip(theirs, ours, strict=True))
    module = original.get_pipe("transformer").model.transformer
    weights = get_encoder(candidate.get_pipe("transformer").model).engine.model.state_dict()  # type: ignore[attr-defined]
    for name, tensor in module.state_dict().items():
        assert name.startswith("pooler.") or tensor.equal(weights[name])


@pytest.mark.slow
def test_real_weights(teacher_dir: Path, tmp_path: Path, converted: Any) -> None:
    model = transformers.AutoModel.from_pretrained(teacher_dir)
    model.encoder.layer = model.encoder.layer[:2]
    model.config.num_hidden_layers = 2
    model.save_pretrained(tmp_path / "encoder")
    tokenizer = transformers.AutoTokenizer.from_pretrained(teacher_dir)
    tokenizer.save_pretrained(tmp_path / "encoder")
    original = make_trf(tmp_path / "encoder", {"tagger": "mean", "ner": "first", "textcat": "mean"})
    texts = [*SENTENCES, " ".join(SENTENCES), "Ann visited Rome in spring. "]
    conversion, candidate = converted(original)
    assert conversion.comparison.same_windows.n_docs == 6
    assert conversion.comparison.same_windows.vectors.max < 1e-4
    assert_same_predictions(original, candidate, texts)
    assert_same_vectors(original, candidate, texts)


@pytest.mark.parametrize("pooling", ["first", "last", "sum", "max"])
def test_every_pooling_shared(bert_dir: Path, converted: Any, pooling: str) -> None:
    original = make_trf(bert_dir, {"tagger": pooling, "textcat": pooling})
    conversion, candidate = converted(original)
    assert conversion.shared == {"transformer": pooling}
    assert_same_predictions(original, candidate, SHORT)
    assert_same_vectors(original, candidate, SHORT, pooling)


def test_odd_poolings_get_a_copy_of_their_own(bert_dir: Path, converted: Any) -> None:
    heads = {"tagger": "last", "ner": "mean", "textcat": "mean", "morphologizer": "max"}
    original = make_trf(bert_dir, heads)
    conversion, candidate = converted(original)
    assert conversion.shared == {"transformer": "mean"}
    assert conversion.private == {"tagger": "last", "morphologizer": "max"}
    assert "'tagger' has the pooling 'last'" in conversion.notes[0]
    assert_same_predictions(original, candidate, SHORT)
    assert_same_vectors(original, candidate, SHORT)
    assert candidate.get_pipe("transformer").listening_components == ["ner", "textcat"]


def test_odd_poolings_can_be_refused(bert_dir: Path, tmp_path: Path, converted: Any) -> None:
    original = make_trf(bert_dir, {"tagger": "last", "ner": "mean", "textcat": "mean"})
    with pytest.raises(ConfigError, match="'tagger' has the pooling 'last'"):
        converted(original, private_copies=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["trf"]


def test_long_documents_are_reported(bert_dir: Path, tmp_path: Path, converted: Any) -> None:
    original = make_trf(bert_dir, spans={**STRIDED_SPANS, "window": 20, "stride": 16})
    rng = random.Random(0)
    texts = [*SHORT[3:], *(random_text(rng, 60) for _ in range(4))]
    (tmp_path / "texts.txt").write_text("\n".join(texts))
    conversion, candidate = converted(original, corpus=tmp_path / "texts.txt")
    comparison = conversion.comparison
    assert comparison.same_windows.n_docs == len(SHORT[3:])
    assert comparison.same_windows.lowest.agreement == 1
    assert comparison.same_windows.vectors.max < 1e-4
    assert comparison.all_windows.n_docs == len(texts)
    assert comparison.all_windows.vectors.max > 1e-2
    assert candidate(texts[-1]).tensor.any(axis=1).all()


@pytest.mark.parametrize(
    ("spans", "window", "overlap"),
    [
        (DOC_SPANS, None, 32),
        ({**STRIDED_SPANS, "window": 20, "stride": 16}, 32, 4),
        # No longer than the encoder takes; no overlap of more than half a window.
        ({**STRIDED_SPANS, "window": 128, "stride": 32}, 72, 35),
        (SENT_SPANS, 72, 32),
    ],
)
def test_windows_are_as_long_as_in_training(
    bert_dir: Path, converted: Any, spans: Any, window: int | None, overlap: int
) -> None:
    _, candidate = converted(make_trf(bert_dir, {"tagger": "mean"}, spans), min_agreement=0)
    model = candidate.config["components"]["transformer"]["model"]
    assert (model["window"], model["overlap"]) == (window, overlap)


def test_a_window_can_be_chosen(bert_dir: Path, tmp_path: Path, converted: Any) -> None:
    original = make_trf(bert_dir, {"tagger": "mean"})
    (tmp_path / "texts.txt").write_text(f"{SHORT[0]}\n{SHORT[3]}")
    conversion, candidate = converted(original, window=18, corpus=tmp_path / "texts.txt")
    model = candidate.config["components"]["transformer"]["model"]
    assert (model["window"], model["overlap"]) == (18, 8)
    assert conversion.comparison.same_windows.n_docs == 1
    assert conversion.comparison.all_windows.n_docs == 2


def test_documents_that_spacy_transformers_cannot_process_are_left_out(
    bert_dir: Path, tmp_path: Path, converted: Any
) -> None:
    """A token without a piece, of which there is no first, and more pieces than positions."""
    original = make_trf(bert_dir, {"tagger": "first", "textcat": "mean"})
    texts = [SHORT[0], "Ann\tlikes   Rome.", "unbelievable " * 30, SHORT[1]]
    for text in texts[1:3]:
        with pytest.raises(Exception, match=r"lengths must be > 0|expanded size"):
            original(text)
    (tmp_path / "texts.txt").write_text("\n".join(texts))
    conversion, candidate = converted(original, corpus=tmp_path / "texts.txt")
    assert conversion.comparison.n_left_out == 2
    assert conversion.comparison.same_windows.n_docs == 2
    assert all(doc.has_annotation("TAG") for doc in candidate.pipe(texts))


def test_sentences_are_windows_of_their_own_no_more(
    bert_dir: Path, tmp_path: Path, converted: Any
) -> None:
    original = make_trf(bert_dir, spans=SENT_SPANS)
    (tmp_path / "texts.txt").write_text(f"{SHORT[0]}\nAnn likes Rome. Bob does not.")
    conversion, _ = converted(original, corpus=tmp_path / "texts.txt")
    assert conversion.comparison.same_windows.n_docs == 1
    assert conversion.comparison.all_windows.n_docs == 2


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_whitespace(encoder_dirs: dict[str, Path], converted: Any, family: str) -> None:
    original = make_trf(encoder_dirs[family])
    _, candidate = converted(original)
    texts = ["Ann  visited\n\nRome   in spring. ", "   ", "\n", "We like pizza\t in Oslo."]
    assert_same_predictions(original, candidate, texts)
    assert_same_vectors(original, candidate, texts)
    assert len(candidate("")) == 0
    assert [len(doc) for doc in candidate.pipe(["", "Ann", ""])] == [0, 1, 0]


def test_special_pieces_in_a_text_are_text(bert_dir: Path, tmp_path: Path, converted: Any) -> None:
    original = make_trf(bert_dir)
    (tmp_path / "texts.txt").write_text("Ann wrote [SEP] in spring.\nAnn wrote it in spring.")
    conversion, _ = converted(original, corpus=tmp_path / "texts.txt")
    assert conversion.comparison.same_windows.n_docs == 1
    assert conversion.comparison.all_windows.n_docs == 2


def test_replaced_listeners_keep_their_transformer(bert_dir: Path, converted: Any) -> None:
    original = make_trf(bert_dir, {**HEADS, "ner": "first"})
    original.replace_listeners("transformer", "ner", ["model.tok2vec"])
    # From here on, the shared encoder goes its own way.
    for parameter in original.get_pipe("transformer").model.transformer.parameters():
        parameter.data *= 1.05
    conversion, candidate = converted(original, private_copies=False)
    assert conversion.private == {"ner": "first"}
    assert_same_predictions(original, candidate, SHORT)
    assert_same_vectors(original, candidate, SHORT)
    model = original.get_pipe("ner").model
    (theirs,) = (node for node in model.walk() if isinstance(node, TransformerModel))
    (ours,) = (
        shim
        for node in candidate.get_pipe("ner").model.walk()
        for shim in node.shims
        if isinstance(shim, EncoderShim)
    )
    weights = ours.engine.model.state_dict()  # type: ignore[attr-defined]
    for name, tensor in theirs.transformer.state_dict().items():
        assert name.startswith("pooler.") or tensor.equal(weights[name])


def test_two_transformers(encoder_dirs: dict[str, Path], converted: Any) -> None:
    nlp = spacy.blank(LANG)
    add_transformer(nlp, encoder_dirs["bert"], "lower")
    nlp.add_pipe("tagger", config=head_config("tagger", listener("mean", upstream="lower")))
    add_transformer(nlp, encoder_dirs["roberta"], "transformer")
    nlp.add_pipe("ner", config=head_config("ner", listener("last", upstream="transformer")))
    original = train(nlp)
    conversion, candidate = converted(original)
    assert conversion.shared == {"lower": "mean", "transformer": "last"}
    assert_same_predictions(original, candidate, SHORT)
    assert_same_vectors(original, candidate, SHORT, "last")


def test_an_upstream_that_is_not_what_is_read(
    encoder_dirs: dict[str, Path], tmp_path: Path, converted: Any
) -> None:
    nlp = spacy.blank(LANG)
    add_transformer(nlp, encoder_dirs["bert"], "lower")
    add_transformer(nlp, encoder_dirs["bert"], "upper")
    nlp.add_pipe("tagger", config=head_config("tagger", listener("mean", upstream="lower")))
    with pytest.raises(ConfigError, match=r"'tagger' listens to 'lower', but .* 'upper'"):
        converted(train(nlp))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["trf"]


def add_cnn(nlp: Any, upstream: str) -> None:
    nlp.add_pipe("tok2vec")
    stock = {"@architectures": "spacy.Tok2VecListener.v1", "width": 96, "upstream": upstream}
    nlp.add_pipe("morphologizer", config=head_config("morphologizer", stock))


def test_a_cnn_beside_the_transformer(bert_dir: Path, converted: Any) -> None:
    nlp = spacy.blank(LANG)
    add_cnn(nlp, "tok2vec")
    add_transformer(nlp, bert_dir)
    nlp.add_pipe("tagger", config=head_config("tagger", listener("mean")))
    original = train(nlp)
    conversion, candidate = converted(original)
    assert conversion.private == {}
    assert_same_predictions(original, candidate, SHORT)
    docs = [list(pipeline.pipe(SHORT)) for pipeline in (original, candidate)]
    assert [[str(t.morph) for t in doc] for doc in docs[0]] == [
        [str(t.morph) for t in doc] for doc in docs[1]
    ]


def test_a_cnn_between_transformer_and_head(bert_dir: Path, converted: Any) -> None:
    nlp = spacy.blank(LANG)
    add_transformer(nlp, bert_dir)
    add_cnn(nlp, "tok2vec")
    nlp.add_pipe("tagger", config=head_config("tagger", listener("mean")))
    original = train(nlp)
    conversion, candidate = converted(original)
    assert conversion.private == {"tagger": "mean"}
    assert "another writer of doc.tensor" in conversion.notes[0]
    assert_same_predictions(original, candidate, SHORT)


def test_a_cnn_whose_listeners_would_hear_the_transformer(bert_dir: Path, converted: Any) -> None:
    nlp = spacy.blank(LANG)
    add_transformer(nlp, bert_dir)
    add_cnn(nlp, "*")
    nlp.add_pipe("tagger", config=head_config("tagger", listener("mean")))
    with pytest.raises(ConfigError, match="'morphologizer' listens to the tok2vec component"):
        converted(train(nlp))


def test_settings_are_kept(bert_dir: Path, tmp_path: Path, converted: Any) -> None:
    original = make_trf(bert_dir)
    original.get_pipe_config("transformer")["model"]["mixed_precision"] = True
    original.config["training"]["frozen_components"] = ["transformer", "ner"]
    original.config["training"]["annotating_components"] = ["transformer"]
    original.config["paths"]["train"] = "somewhere.spacy"
    original.meta["requirements"] = ["spacy-transformers>=1.3,<1.4", "other>=2"]
    original.meta["name"], original.meta["version"] = "mine", "1.2.3"
    original.vocab.strings.add("a string of the vocabulary")
    original.tokenizer.add_special_case("gonna", [{"ORTH": "gon"}, {"ORTH": "na"}])
    _, candidate = converted(original)
    training = candidate.config["training"]
    assert training["frozen_components"] == ["transformer", "ner"]
    assert training["annotating_components"] == ["transformer"]
    text = (tmp_path / "ours" / "config.cfg").read_text()
    assert "path = ${paths.train}" in text
    assert "spacy-transformers" not in text
    model = candidate.config["components"]["transformer"]["model"]
    assert model["mixed_precision"] is True
    assert model["name"] == str(bert_dir)
    assert model["window"] is None
    meta = json.loads((tmp_path / "ours" / "meta.json").read_text())
    assert (meta["name"], meta["version"]) == ("mine", "1.2.3")
    assert [entry.split(">")[0] for entry in meta["requirements"]] == [
        "other",
        "spacy-distil[train]",
    ]
    assert "a string of the vocabulary" in candidate.vocab.strings
    assert [token.text for token in candidate.make_doc("gonna go")] == ["gon", "na", "go"]


def test_grad_factors(bert_dir: Path, converted: Any) -> None:
    nlp = spacy.blank(LANG)
    add_transformer(nlp, bert_dir)
    for pipe, factor in {"tagger": 1.0, "ner": 0.5}.items():
        nlp.add_pipe(pipe, config=head_config(pipe, listener("mean", grad_factor=factor)))
    original = train(nlp)
    conversion, candidate = converted(original)
    assert_same_predictions(original, candidate, SHORT)
    assert len(conversion.notes) == 1
    assert "'ner' has grad_factor = 0.5" in conversion.notes[0]


def test_grad_factor_zero_freezes(bert_dir: Path, converted: Any) -> None:
    nlp = spacy.blank(LANG)
    add_transformer(nlp, bert_dir)
    nlp.add_pipe("tagger", config=head_config("tagger", listener("mean", grad_factor=0.0)))
    original = train(nlp)
    conversion, candidate = converted(original)
    assert_same_predictions(original, candidate, SHORT)
    assert "'transformer' becomes frozen" in conversion.notes[0]
    assert not get_encoder(candidate.get_pipe("transformer").model).is_trainable


def test_training_goes_on(bert_dir: Path, converted: Any) -> None:
    _, candidate = converted(make_trf(bert_dir, {"tagger": "mean", "textcat": "max"}))
    before = [candidate(text).tensor.copy() for text in SHORT]
    examples = make_examples(candidate)
    optimizer = candidate.resume_training()
    losses: list[float] = []
    for _ in range(6):
        step: dict[str, float] = {}
        candidate.update(examples, sgd=optimizer, losses=step)
        losses.append(step["tagger"])
    assert losses[-1] < losses[0]
    after = [candidate(text).tensor for text in SHORT]
    assert not np.allclose(before[0], after[0])


def refuses(converted: Any, nlp: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        converted(nlp)


def test_other_poolings_are_refused(bert_dir: Path, converted: Any) -> None:
    nlp = spacy.blank(LANG)
    add_transformer(nlp, bert_dir)
    layers = {"first": {"@layers": "reduce_mean.v1"}, "then": {"@layers": "softmax_activation.v1"}}
    pooling = {"@layers": "chain.v1", "*": layers}
    nlp.add_pipe("tagger", config=head_config("tagger", {**listener("mean"), "pooling": pooling}))
    refuses(converted, train(nlp, 1), "'tagger' has the pooling 'reduce_mean>>")


def test_annotation_setters_are_refused(bert_dir: Path, converted: Any) -> None:
    registry.annotation_setters("tests.annotation_setter.v1", func=lambda: lambda docs, batch: None)
    nlp = spacy.blank(LANG)
    add_transformer(nlp, bert_dir)
    setter = {"@annotation_setters": "tests.annotation_setter.v1"}
    model = nlp.get_pipe_config("transformer")["model"]
    nlp.remove_pipe("transformer")
    nlp.add_pipe("transformer", config={"model": model, "set_extra_annotations": setter})
    nlp.add_pipe("tagger", config=head_config("tagger", listener("mean")))
    refuses(converted, train(nlp, 1), "'transformer' has set_extra_annotations")


def test_slow_tokenizers_are_refused(bert_dir: Path, tmp_path: Path, converted: Any) -> None:
    vocab = transformers.AutoTokenizer.from_pretrained(bert_dir).get_vocab()
    (tmp_path / "vocab.txt").write_text("\n".join(sorted(vocab, key=vocab.__getitem__)))
    encoder = tmp_path / "encoder"
    transformers.AutoModel.from_pretrained(bert_dir).save_pretrained(encoder)
    transformers.BertTokenizer(tmp_path / "vocab.txt").save_pretrained(encoder)
    original = make_trf(encoder, {"tagger": "mean"}, tokenizer_config={"use_fast": False})
    refuses(converted, original, r"'transformer' has a slow tokenizer \(BertTokenizer\)")


def test_a_pipeline_without_spacy_transformers_is_refused(tmp_path: Path, converted: Any) -> None:
    nlp = spacy.blank(LANG)
    nlp.add_pipe("tagger")
    nlp.initialize(lambda: make_examples(nlp))
    refuses(converted, nlp, r"no transformer component .*; it has tagger \(tagger\)")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["trf"]


def test_disagreement_writes_nothing(tmp_path: Path, converted: Any) -> None:
    """A tokenizer that counts the space before a word as part of its piece: spacy-transformers
    gives the piece to the token before as well, and we do not.
    """
    encoder = write_encoder(tmp_path / "encoder", "roberta")
    tokenizer = json.loads((encoder / "tokenizer.json").read_text())
    tokenizer["post_processor"]["trim_offsets"] = False
    (encoder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ConfigError, match=r"'tagger' agrees with the original in .* of token.tag"):
        converted(make_trf(encoder, {"tagger": "mean"}), min_agreement=1.0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["encoder", "trf"]


def test_output_directories(bert_dir: Path, tmp_path: Path) -> None:
    make_trf(bert_dir, {"tagger": "mean"}).to_disk(tmp_path / "trf")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("keep me")
    with pytest.raises(ConfigError, match=r"it has no meta\.json"):
        convert(tmp_path / "trf", tmp_path / "notes", force=True)
    with pytest.raises(ConfigError, match="is the pipeline itself"):
        convert(tmp_path / "trf", tmp_path / "trf", force=True)
    (tmp_path / "ours").mkdir()  # an empty directory is no obstacle
    convert(tmp_path / "trf", tmp_path / "ours")
    (tmp_path / "ours" / "stale").write_text("")
    with pytest.raises(ConfigError, match="exists"):
        convert(tmp_path / "trf", tmp_path / "ours")
    assert (tmp_path / "ours" / "stale").exists()
    convert(tmp_path / "trf", tmp_path / "ours", force=True)
    assert not (tmp_path / "ours" / "stale").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes", "ours", "trf"]


def test_command(bert_dir: Path, tmp_path: Path) -> None:
    original = make_trf(bert_dir, {"tagger": "mean", "ner": "first"})
    original.to_disk(tmp_path / "trf")
    docs = [example.reference for example in make_examples(original, 6)]
    DocBin(docs=docs).to_disk(tmp_path / "dev.spacy")
    paths = [str(tmp_path / name) for name in ("trf", "ours", "dev.spacy")]
    result = CliRunner().invoke(distil_cli, ["convert", *paths[:2], "--corpus", paths[2]])
    assert result.exit_code == 0, result.output
    assert "same windows in 6 of 6 documents" in result.output
    assert "tag_acc" in result.output
    assert spacy.load(paths[1]).pipe_names == ["transformer", "tagger", "ner"]
    again = CliRunner().invoke(distil_cli, ["convert", *paths[:2]])
    assert again.exit_code == 1
    assert "--force" in again.output


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Newer `_trf` packages are curated pipelines. Nothing is loaded to see it."""
    monkeypatch.setitem(sys.modules, "spacy_curated_transformers", None)
    spacy.blank("en").to_disk(tmp_path / "trf")
    config = Config().from_disk(tmp_path / "trf" / "config.cfg", interpolate=False)
    config["nlp"]["pipeline"] = ["transformer"]
    model = {"@architectures": "spacy-curated-transformers.RobertaTransformer.v1"}
    config["components"]["transformer"] = {"factory": "curated_transformer", "model": model}
    config.to_disk(tmp_path / "trf" / "config.cfg")
    for convert_it in (convert, convert_and_quantize):
        with pytest.raises(
            MissingExtraError,
            match=r"needs 'spacy_curated_transformers', .*pip install 'spacy-distil\[interop\]'",
        ):
            convert_it(tmp_path / "trf", tmp_path / "out")


def test_an_epsilon_that_was_rounded_to_0_is_restored(bert_dir: Path, converted: Any) -> None:
    """spacy-transformers loads 1e-12 as 0."""
    _, candidate = converted(make_trf(bert_dir, {"tagger": "mean"}))
    assert (
        get_encoder(candidate.get_pipe("transformer").model).loaded.config["layer_norm_eps"]
        == 1e-12
    )


def test_code_of_ones_own(bert_dir: Path, tmp_path: Path) -> None:
    make_trf(bert_dir, {"tagger": "mean"}).to_disk(tmp_path / "trf")
    code = make_own(tmp_path / "trf")
    status, output = run("convert", tmp_path / "trf", tmp_path / "ours")
    assert status == 1
    assert ".Tagger.v1', which nothing here registers" in output
    status, output = run("convert", tmp_path / "trf", tmp_path / "ours", "--code", code)
    assert status == 0, output
    assert spacy.load(tmp_path / "ours")("Ann met Bob.").user_data["capitals"] == 2


def test_trf_data_is_kept_or_a_line_says_how_to_get_it(bert_dir: Path, tmp_path: Path) -> None:
    original = make_trf(bert_dir, {"tagger": "mean"})
    original.to_disk(tmp_path / "trf")
    assert run("convert", tmp_path / "trf", tmp_path / "with", "--trf-data")[0] == 0
    result = CliRunner().invoke(
        distil_cli, ["convert", str(tmp_path / "trf"), str(tmp_path / "without")]
    )
    assert result.exit_code == 0, result.output
    assert "does not set doc._.trf_data" in " ".join(result.output.split())
    (line,) = (line for line in result.output.splitlines() if line.startswith("spacy.load("))
    text = SHORT[0]
    expected = original(text)._.trf_data
    for candidate in (spacy.load(tmp_path / "with"), eval(line)):
        data = candidate(text)._.trf_data
        np.testing.assert_array_equal(data.align.lengths, expected.align.lengths)
        np.testing.assert_allclose(
            data.model_output.last_hidden_state,
            expected.model_output.last_hidden_state,
            atol=1e-4,
        )
    plain = spacy.load(tmp_path / "without")(text)
    assert plain._.trf_data is None


@Language.component("test_reads_trf_data")
def read_trf_data(doc: Doc) -> Doc:
    doc.user_data["width"] = doc._.trf_data.model_output.last_hidden_state.shape[-1]
    return doc


@Language.component("test_reads_sentences")
def read_sentences(doc: Doc) -> Doc:
    doc.user_data["sentences"] = len(list(doc.sents))
    return doc


@Language.component("test_reads_tags")
def read_tags(doc: Doc) -> Doc:
    if not all(token.tag_ for token in doc):
        raise ValueError("A token has no tag.")
    return doc


def test_components_of_ones_own_read_annotations(bert_dir: Path, converted: Any) -> None:
    original = make_trf(bert_dir, {"senter": "mean", "tagger": "mean"})
    for name in ("test_reads_trf_data", "test_reads_sentences", "test_reads_tags"):
        original.add_pipe(name)
    _, candidate = converted(original, trf_data=True)
    expected, doc = original(SHORT[0]), candidate(SHORT[0])
    assert doc.user_data["width"] == expected.user_data["width"] == 32
    assert doc.user_data["sentences"] == expected.user_data["sentences"]


def test_components_of_ones_own_between_encoders(
    encoder_dirs: dict[str, Path], converted: Any
) -> None:
    nlp = spacy.blank(LANG)
    add_transformer(nlp, encoder_dirs["bert"], "lower")
    nlp.add_pipe("tagger", config=head_config("tagger", listener("mean", upstream="lower")))
    nlp.add_pipe("sentencizer")
    add_transformer(nlp, encoder_dirs["roberta"], spans=SENT_SPANS)
    nlp.add_pipe("ner", config=head_config("ner", listener("mean", upstream="transformer")))
    original = train(nlp)
    for name in ("test_reads_trf_data", "test_reads_sentences", "test_reads_tags"):
        original.add_pipe(name, before="transformer")
    conversion, candidate = converted(original, trf_data=True)
    assert conversion.comparison.same_windows is not None
    assert candidate(SHORT[0]).user_data["width"] == 32


def test_a_failing_component_is_named(bert_dir: Path, tmp_path: Path) -> None:
    original = make_trf(bert_dir, {"tagger": "mean"})
    original.add_pipe("test_reads_trf_data", name="mine")
    original.to_disk(tmp_path / "trf")
    status, output = run("convert", tmp_path / "trf", tmp_path / "ours")
    assert status == 1
    assert (
        "'mine' fails in the candidate pipeline: AttributeError: 'NoneType' object has no "
        "attribute 'model_output'; if it reads doc._.trf_data, which the original sets, convert "
        "with --trf-data."
    ) in output
    assert not (tmp_path / "ours").exists()
    # Behind no tagger, or before the encoder, it fails in the original.
    for place in ({"before": "tagger"}, {"first": True}):
        original = make_trf(bert_dir, {"tagger": "mean"})
        original.add_pipe("test_reads_tags", name="mine", **place)
        original.to_disk(tmp_path / "trf")
        with pytest.raises(
            ConfigError,
            match=r"^'mine' fails in the original pipeline: ValueError: A token has no tag\.$",
        ):
            convert(tmp_path / "trf", tmp_path / "ours")


def test_trf_data_needs_a_component_that_sets_it(bert_dir: Path, converted: Any) -> None:
    original = make_trf(bert_dir, {"tagger": "mean"})
    original.replace_listeners("transformer", "tagger", ["model.tok2vec"])
    original.remove_pipe("transformer")
    with pytest.raises(ConfigError, match=r"no component that could set doc\._\.trf_data"):
        converted(original, trf_data=True)


@pytest.mark.slow
def test_quantized_at_once(bert_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = make_trf(bert_dir)
    original.to_disk(tmp_path / "trf")
    docs = [example.reference for example in make_examples(original, 6)]
    DocBin(docs=docs).to_disk(tmp_path / "dev.spacy")
    monkeypatch.chdir(tmp_path)
    before = {"trf", "dev.spacy"}
    status, output = run("convert", "trf", "int8", "--corpus", "dev.spacy", "--quantize")
    assert status == 0, output
    assert "int8 candidate on dev.spacy" in output
    assert "Saved the quantized pipeline to int8" in output
    assert {path.name for path in tmp_path.iterdir()} == before | {"int8"}
    assert (tmp_path / "int8" / "transformer" / "model.onnx").is_file()
    # As in two steps.
    convert("trf", "converted", corpus="dev.spacy")
    quantize("converted", "two-steps", corpus="dev.spacy")
    one, two = spacy.load("int8"), spacy.load("two-steps")
    for text in SHORT:
        np.testing.assert_array_equal(one(text).tensor, two(text).tensor)


@pytest.mark.slow
def test_a_failure_of_either_step_keeps_the_old_pipeline(tmp_path: Path) -> None:
    encoder = write_encoder(tmp_path / "encoder", "bert", activation="silu")  # has no graph
    make_trf(encoder, {"tagger": "mean"}).to_disk(tmp_path / "trf")
    spacy.blank("de").to_disk(tmp_path / "out")
    (tmp_path / "no.txt").write_text("")
    names = {path.name for path in tmp_path.iterdir()}
    paths = tmp_path / "trf", tmp_path / "out"
    with pytest.raises(CorpusError, match="has no text in it"):
        convert_and_quantize(*paths, corpus=tmp_path / "no.txt", force=True)
    with pytest.raises(
        ConfigError,
        match=r"^The converted pipeline cannot be quantized: .*activation 'silu'.*quantiz",
    ):
        convert_and_quantize(*paths, force=True)
    with pytest.raises(ConfigError, match="exists"):
        convert_and_quantize(*paths)
    assert {path.name for path in tmp_path.iterdir()} == names
    assert spacy.load(tmp_path / "out").lang == "de"


def test_a_missing_corpus_is_no_test_set(bert_dir: Path, tmp_path: Path) -> None:
    make_trf(bert_dir, {"tagger": "mean"}).to_disk(tmp_path / "trf")
    missing = tmp_path / "none.spacy"
    with pytest.raises(CorpusError, match=rf"^No documents at {missing}\."):
        convert(tmp_path / "trf", tmp_path / "out", corpus=missing)


def run(*arguments: str | Path) -> tuple[int, str]:
    """Exit status and output, its lines joined."""
    result = CliRunner().invoke(distil_cli, [str(each) for each in arguments])
    return result.exit_code, " ".join(result.output.split())
