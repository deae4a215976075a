"""Tests of ideas in the test suites of other packages for transformers in spaCy.

`benchmarks/peers.md` lists the ideas and our tests of each. This file has the tests that fit no
other file.
"""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import re
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import spacy
import torch
import transformers
from spacy.tokens import Doc
from spacy.training import Example
from spacy.vocab import Vocab
from tokenizers import Tokenizer

from spacy_distil.component.shim import get_encoder
from spacy_distil.errors import WeightsError
from tests.life.corpus import annotations_of
from tests.util import (
    LISTENER,
    SENTENCES,
    STOCK_LISTENER,
    WIDTH,
    adam,
    copied,
    encoder_of,
    head_config,
    make_examples,
    make_nlp,
    same,
    torch_model_of,
    weights_of,
)

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "benchmarks" / "peers.md"
TEXT = "Ann visited Rome in spring ."


def encoder_inside(directory: Path, **settings: Any) -> dict[str, Any]:
    """Return the model of an encoder inside a pipe."""
    return {
        "@architectures": "spacy-distil.DistilTransformer.v1",
        "name": str(directory),
        **settings,
    }


def make_inside(directory: Path) -> Any:
    """Make a tagger with one label and an encoder of its own, not initialized."""
    nlp = spacy.blank("en")
    nlp.add_pipe("tagger", config=head_config("tagger", encoder_inside(directory)))
    tagger: Any = nlp.get_pipe("tagger")
    tagger.add_label("NNP")
    return nlp


def tags(nlp: Any, texts: list[str], batch_size: int = 1) -> list[list[str]]:
    return [[token.tag_ for token in doc] for doc in nlp.pipe(texts, batch_size=batch_size)]


# Pieces and vectors


# Words of several scripts and marks, numbers and signs that share a word.
HARD = (
    SENTENCES[0],
    "Mont-Saint-Michel, St.-Malo/Brest: -5°C (or so), 3.50 €/kg!",
    "half東half, ペnをs und Ünïcödé: naïve Œuvre d'Éole",
    "l'été qu'on n'oublie pas, rock'n'roll",
)


def naive_vectors(model: Any, tokenizer: Tokenizer, doc: Doc) -> np.ndarray:
    """Average the hidden states of transformers over the pieces that share a character with each
    token: (n_tokens, width). The piece of a space belongs to no word, although its offsets include
    the first character of the next word.
    """
    pieces = tokenizer.encode(doc.text)
    ids = torch.tensor([pieces.ids])
    with torch.inference_mode():
        states = model(ids, torch.ones_like(ids)).last_hidden_state[0].numpy()
    offsets = [
        set() if piece == "▁" else set(range(*offsets))
        for piece, offsets in zip(pieces.tokens, pieces.offsets, strict=True)
    ]
    rows = []
    for token in doc:
        characters = set(range(token.idx, token.idx + len(token)))
        rows.append(states[[bool(characters & own) for own in offsets]].mean(axis=0))
    return np.stack(rows)


def test_token_vectors_are_means_of_transformers_pieces(encoder_dir: Path) -> None:
    nlp = make_nlp(encoder_dir)
    model = transformers.AutoModel.from_pretrained(encoder_dir).eval()
    tokenizer = Tokenizer.from_file(str(encoder_dir / "tokenizer.json"))
    for doc in nlp.pipe(HARD):
        expected = naive_vectors(model, tokenizer, doc)
        np.testing.assert_allclose(doc.tensor, expected, rtol=0, atol=1e-5)


def test_no_piece_of_a_word_is_left_out(encoder_dir: Path) -> None:
    """The bytes of one character are separate pieces with the same offsets."""
    nlp = make_nlp(encoder_dir)
    doc = nlp.make_doc("\tÉÉole ☃ 東  \n\n")
    encoder = encoder_of(nlp)
    _, encoded, _ = encoder.predict_pieces([doc], nlp.get_pipe("transformer").model.ops)
    rows, _ = encoded.token_rows()
    (window,) = encoded.windows
    left_out = [encoder.loaded.pieces[i] for i in np.delete(window, np.unique(rows))]
    # Spaces, tabs and line breaks, as the families write them.
    assert all(set(piece) <= set("▁ĠĉĊ ") for piece in left_out)
    assert len(window) - len(left_out) >= 5


# Life without weights


def test_a_fresh_component() -> None:
    """Its defaults need neither weights nor the network."""
    nlp = spacy.blank("en")
    pipe: Any = nlp.add_pipe("distil_transformer")
    assert (pipe.vocab, pipe.listeners, pipe.cfg) == (nlp.vocab, [], {})
    assert pipe.set_extra_annotations is None
    assert not get_encoder(pipe.model).is_loaded
    # All settings are in the config, from which the same comes again.
    again: Any = spacy.blank("en").from_config(nlp.config)
    settings = get_encoder(again.get_pipe("distil_transformer").model).settings
    assert settings == get_encoder(pipe.model).settings
    assert vars(settings).keys() < nlp.config["components"]["distil_transformer"]["model"].keys()


def test_a_pipeline_without_weights_is_not_saved(bert_dir: Path, tmp_path: Path) -> None:
    nlp = make_nlp(bert_dir, ["tagger"], initialize=False)
    with pytest.raises(WeightsError, match=r"no weights yet. Call nlp\.initialize\(\)"):
        nlp.to_disk(tmp_path)


@pytest.mark.parametrize("initialized", [False, True])
def test_a_pipe_with_an_encoder_inside_travels(
    bert_dir: Path, tmp_path: Path, initialized: bool
) -> None:
    """Before it has weights, and after it has learned; with its pipeline and without."""
    nlp, docs = make_inside(bert_dir), [Doc(Vocab(), words=TEXT.split())]
    tagger: Any = nlp.get_pipe("tagger")
    if initialized:
        nlp.initialize(lambda: make_examples(nlp))
        fresh = tagger.model.predict(docs)
        optimizer = adam(1e-2)
        for _ in range(2):
            nlp.update(make_examples(nlp), sgd=optimizer)
        assert np.abs(tagger.model.predict(docs)[0] - fresh[0]).max() > 1e-3
    nlp.to_disk(tmp_path)
    tagger.to_disk(tmp_path / "alone")
    ways: tuple[Callable[[Any], Any], ...] = (
        lambda other: other.from_bytes(nlp.to_bytes()),
        lambda other: other.from_disk(tmp_path),
        lambda other: other.get_pipe("tagger").from_bytes(tagger.to_bytes()),
        lambda other: other.get_pipe("tagger").from_disk(tmp_path / "alone"),
    )
    for read in ways:
        other = make_inside(bert_dir)
        read(other)
        copy: Any = other.get_pipe("tagger")
        assert copy.labels == tagger.labels
        if initialized:
            found, expected = copy.model.predict(docs), tagger.model.predict(docs)
            np.testing.assert_array_equal(found[0], expected[0])
        else:
            assert not get_encoder(copy.model.get_ref("tok2vec")).is_loaded
    if not initialized:
        other = spacy.load(tmp_path)
        other.initialize(lambda: make_examples(other))
        assert other(TEXT)[0].tag_


# Families, and forms of their weights


@pytest.mark.parametrize("family", ["albert", "deberta-v2", "xlm-roberta"])
def test_an_encoder_on_sentencepiece_learns_and_is_saved_again(
    encoder_dirs: dict[str, Path], family: str, tmp_path: Path
) -> None:
    nlp = make_nlp(encoder_dirs[family], ["tagger"])
    before = weights_of(nlp)
    optimizer = adam(5e-3)
    for _ in range(2):
        nlp.update(make_examples(nlp), sgd=optimizer)
    assert not same(before, weights_of(nlp), atol=1e-4)
    nlp.to_disk(tmp_path / "first")
    spacy.load(tmp_path / "first").to_disk(tmp_path / "second")
    from_bytes = make_nlp(encoder_dirs["bert"], ["tagger"]).from_bytes(nlp.to_bytes())
    for other in (spacy.load(tmp_path / "second"), from_bytes):
        for text in (*SENTENCES, ""):
            assert annotations_of(other(text)) == annotations_of(nlp(text))
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        first, second = (tmp_path / way / "transformer" / name for way in ("first", "second"))
        assert first.read_bytes() == second.read_bytes()


def test_weights_in_several_files(bert_dir: Path, tmp_path: Path) -> None:
    model = transformers.AutoModel.from_pretrained(bert_dir)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    for path in bert_dir.glob("tokenizer*"):
        shutil.copy(path, tmp_path)
    assert same(weights_of(make_nlp(bert_dir)), weights_of(make_nlp(tmp_path)), atol=0)


# Text classifiers, whose models ask their tok2vec for its width in many ways

CLASSIFIERS: dict[str, dict[str, Any]] = {
    "spacy.TextCatCNN.v2": {"exclusive_classes": False},
    "spacy.TextCatParametricAttention.v1": {"exclusive_classes": False},
    "spacy.TextCatEnsemble.v2": {
        "linear_model": {
            "@architectures": "spacy.TextCatBOW.v3",
            "exclusive_classes": False,
            "ngram_size": 1,
            "no_output_layer": False,
            "length": 1024,
        }
    },
}


@pytest.mark.parametrize("place", ["shared", "inside"])
@pytest.mark.parametrize("architecture", CLASSIFIERS)
def test_every_text_classifier_learns(
    bert_dir: Path, tmp_path: Path, architecture: str, place: str
) -> None:
    """Then it takes another label, if its model can."""
    inside = place == "inside"
    nlp = spacy.blank("en") if inside else make_nlp(bert_dir, initialize=False)
    tok2vec = encoder_inside(bert_dir) if inside else LISTENER
    model = {"@architectures": architecture, **CLASSIFIERS[architecture], "tok2vec": tok2vec}
    pipe: Any = nlp.add_pipe("textcat_multilabel", config={"model": model})
    spacy.util.fix_random_seed(0)
    nlp.initialize(lambda: make_examples(nlp))
    optimizer = adam(1e-2)
    empty = Example.from_dict(nlp.make_doc(""), {"cats": {"travel": 0.0, "food": 0.0}})
    for _ in range(15):
        nlp.update([*make_examples(nlp), empty], sgd=optimizer)
    assert nlp.evaluate(make_examples(nlp))["cats_macro_auc"] > 0.9
    cats = nlp(TEXT).cats
    if pipe.is_resizable:
        pipe.add_label("new")
        found = nlp(TEXT).cats
        assert found.keys() == {"travel", "food", "new"}
        assert {label: found[label] for label in cats} == pytest.approx(cats, abs=1e-6)
        nlp.update(make_examples(nlp), sgd=optimizer)
    assert pipe.is_resizable == (architecture == "spacy.TextCatCNN.v2")
    nlp.to_disk(tmp_path)
    assert spacy.load(tmp_path)(TEXT).cats == pytest.approx(nlp(TEXT).cats, abs=1e-6)


# Docs without tokens


def test_batches_with_docs_without_tokens(torch_pipeline: Path) -> None:
    """Even if the encoder is disabled, and the heads are told to see zeros."""
    tok2vec = {"without_encoder": "zeros"}
    config = {"components": {"tagger": {"model": {"tok2vec": tok2vec}}}}
    nlp: Any = spacy.load(torch_pipeline, config=config)
    texts = ["", TEXT, "", "", "We like unbelievable pizza", "pizza", ""]
    alone = [[token.tag_ for token in nlp(text)] for text in texts]
    assert [len(each) for each in alone] == [len(text.split()) for text in texts]
    assert alone[1][0] != alone[4][0]
    assert list(nlp.pipe([])) == []
    assert all(doc.tensor.shape == (0, WIDTH) for doc in nlp.pipe(["", ""]))
    for batch_size in (1, 2, 7):
        assert tags(nlp, texts, batch_size) == alone
    with nlp.select_pipes(enable="tagger"):
        without = tags(nlp, texts)
        assert tags(nlp, texts, 4) == without
    # All tokens look alike to it.
    assert len({tag for each in without for tag in each}) == 1


# Listeners


@pytest.mark.parametrize("listener", [LISTENER, STOCK_LISTENER], ids=["ours", "stock"])
def test_a_head_does_not_learn_from_other_docs(bert_dir: Path, listener: dict[str, Any]) -> None:
    """It learns only from the docs that the encoder was updated with."""
    nlp = make_nlp(bert_dir, ["tagger"], listener=listener)
    examples = make_examples(nlp)
    pipe, tagger = nlp.get_pipe("transformer"), nlp.get_pipe("tagger")
    pipe.update(examples)
    with pytest.raises(ValueError, match="E953"):
        tagger.update(make_examples(nlp, start=50), sgd=False)
    # A prediction for the batch's own docs leaves it as it is.
    pipe.predict([example.predicted for example in examples])
    assert tagger.update(examples, sgd=False)["tagger"] > 0
    assert any(p.grad is not None and p.grad.any() for p in torch_model_of(nlp).parameters())


@pytest.mark.parametrize(
    ("encoder", "pipe", "paths"),
    [
        ("wrong", "tagger", ["model.tok2vec"]),
        ("transformer", "parser", ["model.tok2vec"]),
        ("transformer", "tagger", ["model.wrong"]),
        ("transformer", "tagger", ["model.tok2vec", "model.wrong"]),
    ],
)
def test_a_wrong_path_of_a_listener_is_refused(
    bert_dir: Path, encoder: str, pipe: str, paths: list[str]
) -> None:
    """spaCy refuses it, and nothing changes."""
    nlp = make_nlp(bert_dir, ["tagger"])
    expected, config = annotations_of(nlp(TEXT)), nlp.config.to_str()
    with pytest.raises(ValueError, match=r"E88[6-9]|E001"):
        nlp.replace_listeners(encoder, pipe, paths)
    assert nlp.config.to_str() == config
    assert annotations_of(nlp(TEXT)) == expected
    assert nlp.get_pipe("transformer").listening_components == ["tagger"]


def test_pipes_are_sourced_with_encoders_of_their_own(torch_pipeline: Path, tmp_path: Path) -> None:
    """Another pipe begins to listen to the shared encoder."""
    source: Any = spacy.load(torch_pipeline)
    own = {"source": str(torch_pipeline), "replace_listeners": ["model.tok2vec"]}
    config = {
        "nlp": {"lang": "en", "pipeline": ["transformer", "tagger", "textcat", "morphologizer"]},
        "components": {
            "transformer": {"source": str(torch_pipeline)},
            "tagger": own,
            "textcat": own,
            "morphologizer": {
                "factory": "morphologizer",
                **head_config("morphologizer", LISTENER),
            },
        },
    }
    nlp: Any = spacy.util.load_model_from_config(config, auto_fill=True)
    with nlp.select_pipes(enable="morphologizer"):
        nlp.initialize(lambda: make_examples(nlp))
    optimizer = nlp.resume_training(sgd=adam(1e-2))
    for _ in range(5):
        nlp.update(make_examples(nlp), sgd=optimizer, exclude=["tagger", "textcat"])
    assert not same(weights_of(source), weights_of(nlp), atol=1e-3)
    nlp.to_disk(tmp_path)
    loaded: Any = spacy.load(tmp_path)
    for each in (nlp, loaded):
        assert each.get_pipe("transformer").listening_components == ["morphologizer"]
        for name in ("tagger", "textcat"):
            sub_model = each.config["components"][name]["model"]["tok2vec"]
            assert sub_model["@architectures"] == "spacy-distil.DistilTransformer.v1"
        doc, expected = each(TEXT), source(TEXT)
        assert [token.tag_ for token in doc] == [token.tag_ for token in expected]
        assert doc.cats == pytest.approx(expected.cats, abs=1e-5)
        assert all(token.pos_ for token in doc)


# Frozen, then not


def test_a_copy_of_a_frozen_encoder_stays_frozen(bert_dir: Path, tmp_path: Path) -> None:
    """Until its setting says otherwise."""
    nlp = make_nlp(bert_dir, ["tagger"], frozen=True)
    nlp.replace_listeners("transformer", "tagger", ["model.tok2vec"])
    weights = check_learning(nlp, frozen=True)
    assert same(weights, weights_of(nlp), atol=0)
    nlp.to_disk(tmp_path)
    for frozen in (True, False):
        thaw = {"components.tagger.model.tok2vec.frozen": frozen}
        check_learning(spacy.load(tmp_path, config=thaw), frozen=frozen)


def check_learning(nlp: Any, *, frozen: bool) -> dict[str, np.ndarray]:
    """Train the tagger, and check whether its own encoder learns. RETURNS: the weights of the
    encoder.
    """
    tagger = nlp.get_pipe("tagger")
    module: Any = get_encoder(tagger.model.get_ref("tok2vec")).engine
    before, optimizer = copied(module.model), nlp.resume_training(sgd=adam(1e-2))
    losses = [nlp.update(make_examples(nlp), sgd=optimizer)["tagger"] for _ in range(8)]
    assert losses[-1] < 0.9 * losses[0]
    assert same(before, copied(module.model), atol=0 if frozen else 1e-4) == frozen
    return copied(module.model)


def test_heads_first_and_then_all(bert_dir: Path, tmp_path: Path) -> None:
    """An encoder that learns after its heads: two runs, and one setting."""
    nlp = make_nlp(bert_dir, ["tagger", "ner"], frozen=True)
    before, optimizer = weights_of(nlp), adam(1e-2)
    for _ in range(5):
        nlp.update(make_examples(nlp), sgd=optimizer)
    assert same(before, weights_of(nlp), atol=0)
    nlp.to_disk(tmp_path)
    thawed = spacy.load(tmp_path, config={"components.transformer.model.frozen": False})
    assert annotations_of(thawed(TEXT)) == annotations_of(nlp(TEXT))
    optimizer = thawed.resume_training(sgd=adam(1e-3))
    for _ in range(2):
        thawed.update(make_examples(thawed), sgd=optimizer)
    assert not same(before, weights_of(thawed), atol=1e-4)


# The table


def table_rows() -> list[list[str]]:
    """Read the ideas and our tests of each."""
    lines = TABLE.read_text(encoding="utf8").splitlines()
    rows = [
        line.strip("|").split("|")
        for line in lines
        if line.startswith("| ") and line != "| idea | our tests |"
    ]
    return [[cell.strip() for cell in row] for row in rows]


@cache
def names_of_tests(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf8"))
    return {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def test_the_table_names_tests_that_exist() -> None:
    named = set()
    for idea, answer in table_rows():
        tests = re.findall(r"`([\w/]+\.py)::(\w+)`", answer)
        assert tests or re.match(r"does not apply: \w+", answer), idea
        assert answer.count("::") == len(tests), idea
        for file, name in tests:
            assert name in names_of_tests(ROOT / "tests" / file), f"{idea}: {file}::{name}"
            named.add((file, name))
    own = {name for name in names_of_tests(Path(__file__)) if "_table_" not in name}
    assert {name for file, name in named if file == Path(__file__).name} == own


def test_the_table_has_every_test_of_spacy_transformers() -> None:
    spec = importlib.util.find_spec("spacy_transformers")
    if spec is None or importlib.metadata.version("spacy-transformers") != "1.4.0":
        pytest.skip("spacy-transformers 1.4.0, whose tests are listed, is not installed")
    assert spec.origin
    files = list((Path(spec.origin).parent / "tests").rglob("test_*.py"))
    assert files
    theirs = {f"{path.stem}::{name}" for path in files for name in names_of_tests(path)}
    listed = re.findall(r"`(test_\w+::\w+)`", TABLE.read_text(encoding="utf8"))
    assert len(listed) == len(set(listed))
    assert set(listed) == theirs
