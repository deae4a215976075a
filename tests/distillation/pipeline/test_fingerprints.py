"""The same pipeline or documents have the same fingerprint, others another."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import spacy
from spacy.tokens import Doc
from spacy.training import Example
from spacy.util import fix_random_seed
from thinc.api import set_dropout_rate

from spacy_distil.distillation.pipeline.fingerprints import fingerprint_docs, fingerprint_pipeline
from spacy_distil.pipelines import import_code
from tests.util import head_config, torch_model_of

TEXTS = ["We like Rome. Ann went there, somehow.", "We", "Bob"]
# Small, or their hashed embeddings would take seconds to save.
TOK2VEC = {
    "@architectures": "spacy.HashEmbedCNN.v2",
    "pretrained_vectors": True,
    "width": 8,
    "depth": 1,
    "embed_size": 50,
    "window_size": 1,
    "maxout_pieces": 2,
    "subword_features": True,
}


@pytest.fixture(scope="module")
def cnn_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stock pipes that have learned a little, with vectors and rules."""
    fix_random_seed(0)
    nlp = spacy.blank("xx")
    for i, word in enumerate(("We", "like", "Rome")):
        nlp.vocab.set_vector(word, np.arange(i, i + 8, dtype="f"))
    parser = {"@architectures": "spacy.TransitionBasedParser.v2", "state_type": "parser"}
    sizes = {"extra_state_tokens": False, "hidden_width": 8, "maxout_pieces": 2, "use_upper": True}
    models = {
        "tagger": head_config("tagger", TOK2VEC)["model"],
        "morphologizer": head_config("morphologizer", TOK2VEC)["model"],
        "parser": {**parser, **sizes, "tok2vec": TOK2VEC},
        "ner": head_config("ner", TOK2VEC)["model"],
        "textcat": head_config("textcat", TOK2VEC)["model"],
    }
    for name, model in models.items():
        nlp.add_pipe(name, config={"model": model})
    nlp.add_pipe("attribute_ruler")
    nlp.add_pipe("entity_ruler")
    annotations = {
        "tags": ["PRP", "VB", "NN"],
        "morphs": ["Number=Plur", "", "Number=Sing"],
        "pos": ["PRON", "VERB", "PROPN"],
        "heads": [1, 1, 1],
        "deps": ["nsubj", "ROOT", "obj"],
        "entities": ["O", "O", "U-LOC"],
        "cats": {"travel": 1.0, "food": 0.0},
    }
    doc = Doc(nlp.vocab, words=["We", "like", "Rome"])
    examples = [Example.from_dict(doc, annotations)] * 40
    optimizer = nlp.initialize(lambda: examples)
    for _ in range(3):
        nlp.update(examples, sgd=optimizer)
    nlp.get_pipe("attribute_ruler").add([[{"LOWER": "ann"}]], {"TAG": "NNP", "POS": "PROPN"})
    patterns = [{"label": label, "pattern": label.title()} for label in ("BOB", "ANN", "ZOË")]
    nlp.get_pipe("entity_ruler").add_patterns(patterns)
    path = tmp_path_factory.mktemp("pipelines") / "cnn"
    nlp.to_disk(path)
    return path


@pytest.fixture(scope="module")
def trf_pipeline(bert_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path | None:
    """Of spacy-transformers, untrained; None where that is not installed."""
    try:
        import spacy_transformers  # noqa: F401
    except ImportError:
        return None
    from tests.export.test_convert import add_transformer, listener

    nlp = spacy.blank("xx")
    add_transformer(nlp, bert_dir)
    nlp.add_pipe("tagger", config=head_config("tagger", listener("mean"))).add_label("NN")
    nlp.initialize()
    path = tmp_path_factory.mktemp("pipelines") / "trf"
    nlp.to_disk(path)
    return path


@pytest.fixture(scope="module")
def pipelines(
    torch_pipeline: Path, onnx_pipeline: Path, cnn_pipeline: Path, trf_pipeline: Path | None
) -> dict[str, Path]:
    """Saved pipelines of every kind, by name."""
    found = {"torch": torch_pipeline, "onnx": onnx_pipeline, "cnn": cnn_pipeline}
    return {**found, "trf": trf_pipeline} if trf_pipeline else found


@pytest.fixture(scope="module")
def elsewhere(pipelines: dict[str, Path]) -> dict[str, str]:
    """Fingerprints from another process, in which sets of strings have another order."""
    code = f"""
    import json, spacy
    from spacy_distil.distillation.pipeline.fingerprints import fingerprint_docs
    from spacy_distil.distillation.pipeline.fingerprints import fingerprint_pipeline
    paths = {[str(path) for path in pipelines.values()]}
    prints = [fingerprint_pipeline(spacy.load(path)) for path in paths]
    nlp = spacy.blank("xx")
    prints.append(fingerprint_docs(map(nlp.make_doc, {TEXTS})))
    print(json.dumps(prints))
    """
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONHASHSEED": "1234"},
    )
    assert result.returncode == 0, result.stderr
    prints = json.loads(result.stdout.splitlines()[-1])
    return dict(zip([*pipelines, "docs"], prints, strict=True))


# Pipelines


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["torch", "onnx", "cnn", "trf"])
def test_a_pipeline_keeps_its_fingerprint(
    kind: str, pipelines: dict[str, Path], elsewhere: dict[str, str]
) -> None:
    """In this process and others, loaded again, and used."""
    if kind not in pipelines:
        pytest.skip("spacy-transformers is not installed")
    nlp = spacy.load(pipelines[kind])
    before = fingerprint_pipeline(nlp)
    assert fingerprint_pipeline(spacy.load(pipelines[kind])) == before
    assert elsewhere[kind] == before
    assert len(list(nlp.pipe([*TEXTS, "Words not seen before: Timbuktu"]))) == 4
    assert fingerprint_pipeline(nlp) == before


def test_dropout_is_nothing_learned(cnn_pipeline: Path) -> None:
    """It is saved with a model, and predicting sets it to 0."""
    nlp = spacy.load(cnn_pipeline)
    before = fingerprint_pipeline(nlp)
    set_dropout_rate(nlp.get_pipe("ner").model, 0.1)
    assert fingerprint_pipeline(nlp) == before


def set_weight(nlp: Any, pipe: str) -> None:
    for node in nlp.get_pipe(pipe).model.walk():
        if node.name in ("softmax", "precomputable_affine"):
            node.get_param("W").flat[0] += 1e-3
            return
    raise AssertionError(f"{pipe} has no such layer")


def swap(nlp: Any) -> None:
    first, second = nlp.pipe_names[:2]
    entry = nlp._components.pop(nlp.component_names.index(first))
    nlp._components.insert(nlp.component_names.index(second) + 1, entry)


def add_pattern(nlp: Any) -> None:
    nlp.get_pipe("entity_ruler").add_patterns([{"label": "X", "pattern": "Rome"}])


def set_vector(nlp: Any) -> None:
    nlp.vocab.vectors.data[1, 1] += 1e-3


CHANGES: dict[str, Callable[[Any], Any]] = {
    "a weight of the tagger": lambda nlp: set_weight(nlp, "tagger"),
    "a weight of the parser": lambda nlp: set_weight(nlp, "parser"),
    "a weight of the ner": lambda nlp: set_weight(nlp, "ner"),
    "a pipe less": lambda nlp: nlp.disable_pipe("textcat"),
    "a name": lambda nlp: nlp.rename_pipe("tagger", "tagger2"),
    "the order": swap,
    "a pattern": add_pattern,
    "a vector": set_vector,
    "which word has which vector": lambda nlp: nlp.vocab.vectors.add("We", row=2),
    "a special case": lambda nlp: nlp.tokenizer.add_special_case("Rome!", [{"ORTH": "Rome!"}]),
    "its norm": lambda nlp: nlp.tokenizer.add_special_case(
        "Rome!", [{"ORTH": "Rome!", "NORM": "rome"}]
    ),
    "an infix": lambda nlp: setattr(nlp.tokenizer, "infix_finditer", re.compile("x").finditer),
    "a table": lambda nlp: nlp.vocab.lookups.add_table("lexeme_norm", {"we": "us"}),
}


def test_another_pipeline_has_another_fingerprint(cnn_pipeline: Path) -> None:
    nlp = spacy.load(cnn_pipeline)
    seen = {fingerprint_pipeline(nlp)}
    for name, change in CHANGES.items():
        change(nlp)
        found = fingerprint_pipeline(nlp)
        assert found not in seen, name
        seen.add(found)


def test_one_weight_of_our_encoder(torch_pipeline: Path) -> None:
    nlp = spacy.load(torch_pipeline)
    before = fingerprint_pipeline(nlp)
    weight = next(torch_model_of(nlp).parameters())
    weight.data[0, 0] += 1e-3
    after = fingerprint_pipeline(nlp)
    assert after != before
    weight.data[0, 0] += 1e-3
    assert fingerprint_pipeline(nlp) not in (before, after)


def test_one_weight_of_an_encoder_of_spacy_transformers(trf_pipeline: Path | None) -> None:
    if trf_pipeline is None:
        pytest.skip("spacy-transformers is not installed")
    nlp = spacy.load(trf_pipeline)
    before = fingerprint_pipeline(nlp)
    next(nlp.get_pipe("transformer").model.transformer.parameters()).data[0, 0] += 1e-3
    assert fingerprint_pipeline(nlp) != before


def test_settings_count(torch_pipeline: Path) -> None:
    pooling = {"components": {"transformer": {"model": {"pooling": "first"}}}}
    changed = spacy.load(torch_pipeline, config=pooling)
    assert fingerprint_pipeline(changed) != fingerprint_pipeline(spacy.load(torch_pipeline))


def test_pipes_that_learn_nothing() -> None:
    blank, sentencizer = spacy.blank("en"), spacy.blank("en")
    sentencizer.add_pipe("sentencizer")
    merger = spacy.blank("en")
    merger.add_pipe("merge_entities")  # a function
    german = spacy.blank("de")
    prints = {fingerprint_pipeline(nlp) for nlp in (blank, sentencizer, merger, german)}
    assert len(prints) == 4
    assert fingerprint_pipeline(spacy.blank("en")) in prints


CODE = """
from functools import partial
from spacy.language import Language

NAMES = ["Ann"]

@Language.component("tests_own_function")
def own_function(doc):
    return doc

class Own:
    def __call__(self, doc):
        return doc

@Language.factory("tests_own_class")
def make_own(nlp, name):
    return Own()

@Language.factory("tests_own_partial")
def make_partial(nlp, name):
    return partial(partial(own_function))
"""


def test_own_code_counts(tmp_path: Path) -> None:
    """All of its file, but for comments."""
    prints = []
    for code in (CODE, "# Names" + CODE, CODE.replace("Ann", "Bob")):
        (tmp_path / "code.py").write_text(code)
        import_code(tmp_path / "code.py")
        own = []
        for name in ("tests_own_function", "tests_own_class", "tests_own_partial"):
            nlp = spacy.blank("en")
            nlp.add_pipe(name)
            own.append(fingerprint_pipeline(nlp))
        prints.append(own)
    assert prints[0] == prints[1]
    assert not {*prints[0]} & {*prints[2]}


@pytest.mark.slow
def test_the_own_code_of_a_program_counts_without_the_rest(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    end = "def main():\n    nlp = spacy.blank('en')\n    nlp.add_pipe('tests_own_class')\n"
    end += "    print(fingerprint_pipeline(nlp), {steps})\n"
    start = "import spacy\nfrom spacy_distil.distillation.pipeline.fingerprints import "
    start += "fingerprint_pipeline\n"
    prints = []
    for steps, code in ((1, CODE), (2, CODE), (1, CODE.replace("__call__(self", "__call__(this"))):
        program.write_text(start + code + end.format(steps=steps) + "main()\n")
        done = subprocess.run([sys.executable, program], capture_output=True, text=True, check=True)
        prints.append(done.stdout.split()[0])
    assert prints[0] == prints[1] != prints[2]


# Documents


def test_documents_keep_their_fingerprint(elsewhere: dict[str, str]) -> None:
    nlp = spacy.blank("xx")
    assert fingerprint_docs(map(nlp.make_doc, TEXTS)) == elsewhere["docs"]


def test_other_documents_have_another_fingerprint() -> None:
    vocab = spacy.blank("xx").vocab

    def docs(*parts: str) -> list[Doc]:
        """Of words such as "We_", where the last character stands for a space after it."""
        words = [part.split() for part in parts]
        spaces = [[word.endswith("_") for word in doc] for doc in words]
        return [
            Doc(vocab, words=[word.rstrip("_") for word in doc], spaces=own)
            for doc, own in zip(words, spaces, strict=True)
        ]

    variants = [
        docs("We_ like", "Rome"),
        docs("We_ like_", "Rome"),
        docs("We like", "Rome"),
        docs("We_", "like Rome"),
        docs("We_ like Rome"),
        docs("We_ li ke", "Rome"),
        docs("Rome", "We_ like"),
        docs("We_ like", "", "Rome"),
        docs("We_ like", "Rome", ""),
        docs(""),
        [],
    ]
    assert len({fingerprint_docs(variant) for variant in variants}) == len(variants)
    assert fingerprint_docs(iter(variants[0])) == fingerprint_docs(docs("We_ like", "Rome"))


def test_norms_count() -> None:
    vocab = spacy.blank("xx").vocab
    plain, own = (Doc(vocab, words=["We", "like"]) for _ in range(2))
    own[1].norm_ = "love"
    assert fingerprint_docs([plain]) != fingerprint_docs([own])


def test_annotations_do_not_count() -> None:
    vocab = spacy.blank("xx").vocab
    plain = Doc(vocab, words=["We", "like"])
    tagged = Doc(vocab, words=["We", "like"], tags=["PRP", "VB"])
    assert fingerprint_docs([plain]) == fingerprint_docs([tagged])
