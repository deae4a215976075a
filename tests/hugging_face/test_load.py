"""Pipelines in memory against transformers' own pipelines and logits."""

from __future__ import annotations

import json
import pickle
import random
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import spacy
import torch
import transformers
from safetensors.torch import load_file, save_file
from spacy.tokens import Doc

from spacy_distil.encoding import read_docs
from spacy_distil.hugging_face import load_classifier
from spacy_distil.ner.schemes import SCHEMES, tag_names
from tests.encoding.test_language import SPECIAL, english_tokenizer
from tests.hugging_face.models import FAMILIES, ODD, long_text, write_model
from tests.util import SENTENCES, encoder_of

TOKENS, TEXTS = "TokenClassification", "SequenceClassification"
# Words that spaCy and all tokenizers divide alike.
WORDS = ["Ann", "visited", "Rome", "in", "the", "spring", "of", "2021", "pizza", "Oslo", "wrote"]
LABELS = ("PER", "LOC")


def texts() -> list[str]:
    """Texts of one word to five."""
    rng = random.Random(1)
    return [" ".join(rng.choices(WORDS, k=1 + i % 5)) for i in range(50)]


def lower_bias(model: Path, which: Sequence[bool]) -> None:
    """Make some of a token classifier's labels rarer."""
    path = model / "model.safetensors"
    weights = load_file(path)
    weights["classifier.bias"] -= 1.5 * torch.tensor(which)
    save_file(weights, path, {"format": "pt"})


def silent(message: str) -> None:
    """Ignore the decisions of `load_classifier`."""


@pytest.mark.parametrize("scheme", ["IO", "IOB1", "IOB2"])
@pytest.mark.parametrize("family", FAMILIES)
def test_entities_are_those_of_transformers(family: str, scheme: Any, tmp_path: Path) -> None:
    """In all texts in which the best tags are valid. transformers does not correct others."""
    labels = tag_names(LABELS, scheme)
    random.Random(0).shuffle(labels)
    model = write_model(tmp_path, family, TOKENS, labels, seed=2)
    dependent = {"IOB2": "I-", "IOB1": "B-", "IO": "none"}[scheme]  # on the tag before
    lower_bias(model, [label.startswith(dependent) for label in labels])
    nlp = load_classifier(model, "en", None if scheme == "IO" else scheme, tell=silent)
    assert nlp.get_pipe("ner").scheme == scheme  # type: ignore[attr-defined]
    recognize, tag = (
        transformers.pipeline("ner", model=str(model), device="cpu", **settings)
        for settings in (
            {"aggregation_strategy": "first"},
            {"aggregation_strategy": "none", "ignore_labels": []},
        )
    )
    n_compared = n_entities = 0
    for text in texts():
        raw: Any = tag(text)
        doc = nlp(text)
        if any(each["start"] == each["end"] for each in raw):
            continue  # transformers takes a piece for the space alone for a word
        best = {token.idx: next(r for r in raw if r["end"] > token.idx) for token in doc}
        before, is_valid = "", True
        for token in doc:
            entity = best[token.idx]["entity"]
            label = entity.partition("-")[2]
            is_valid &= not entity.startswith(dependent) or label == before
            before = label
        if not is_valid:
            continue
        expected = [
            (group["entity_group"], group["start"], group["end"]) for group in recognize(text)
        ]
        if family in ("albert", "camembert", "xlm-roberta", "deberta-v2"):
            # Their pieces begin with the space before the word.
            expected = [
                (label, start + (text[start] == " "), end) for label, start, end in expected
            ]
        assert [(ent.label_, ent.start_char, ent.end_char) for ent in doc.ents] == expected
        n_compared += 1
        n_entities += len(expected)
    assert n_compared >= 10
    assert n_entities >= 5


def reference_logits(model: Path, ids: list[int], kind: str) -> np.ndarray:
    loaded = getattr(transformers, f"AutoModelFor{kind}").from_pretrained(model).eval()
    pieces = torch.tensor([ids])
    with torch.no_grad():
        output = loaded(input_ids=pieces, attention_mask=torch.ones_like(pieces))
    return output.logits[0].numpy()


@pytest.mark.parametrize("scheme", [*SCHEMES, "BIOES"])
@pytest.mark.parametrize("family", ["bert", "roberta", "xlm-roberta"])
def test_logits_of_tokens(family: str, scheme: Any, tmp_path: Path) -> None:
    """At the first piece of each token, in the order of the pipe's tags. Missing tags never win."""
    spelled = tag_names(LABELS, "BILUO" if scheme == "BIOES" else scheme)
    removed = {"IO": None, "BIOES": "I-LOC", "BILUO": "B-PER"}.get(scheme, "B-PER")
    known = [tag for tag in spelled if tag != removed]
    letters = str.maketrans("LU", "ES")
    names = [t[0].translate(letters) + t[1:] if scheme == "BIOES" else t for t in known]
    order = random.Random(0).sample(range(len(names)), len(names))
    model = write_model(tmp_path, family, TOKENS, [names[i] for i in order])
    chosen = {"BIOES": None}.get(scheme, scheme)
    if scheme == "IOB2":  # the labels alone would say IOB1
        assert load_classifier(model, "en", tell=silent).get_pipe("ner").scheme == "IOB1"
    nlp = load_classifier(model, "en", chosen, tell=silent)
    pipe: Any = nlp.get_pipe("ner")
    columns = [[names[i] for i in order].index(names[known.index(t)]) for t in known]
    for text in (*SENTENCES, *ODD):
        doc = nlp(text)
        tokenizer = encoder_of(nlp).loaded.tokenizer
        pieces = tokenizer([read_docs([doc])[0].text])[0]
        ids = [*tokenizer.prefix, *pieces.ids.tolist(), *tokenizer.suffix]
        reference = reference_logits(model, ids, TOKENS)[len(tokenizer.prefix) :]
        logits = pipe.model.predict([doc])[0]
        assert logits.shape == (len(doc), len(pipe.tag_names))
        by_name = dict(zip(pipe.tag_names, logits.T, strict=True))
        own = np.stack([by_name[tag] for tag in known], axis=1)
        if removed is not None:
            assert (by_name[removed] < own.min(axis=1) - 1000).all()
        for token in doc:
            first = [
                i
                for i, (start, end) in enumerate(zip(pieces.starts, pieces.ends, strict=True))
                if start < token.idx + len(token) and end > token.idx and start < end
            ]
            if first:
                expected = reference[first[0]][columns]
                np.testing.assert_allclose(own[token.i], expected, atol=1e-4)


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_of_texts(family: str, multi_label: bool, tmp_path: Path) -> None:
    labels = ["zebra", "ape", "LABEL", "4"]
    settings = {"problem_type": "multi_label_classification"} if multi_label else {}
    model = write_model(tmp_path, family, TEXTS, labels, **settings)
    nlp = load_classifier(model, "en")
    assert nlp.pipe_names == ["transformer", "textcat_multilabel" if multi_label else "textcat"]
    pipe: Any = nlp.get_pipe(nlp.pipe_names[1])
    assert pipe.labels == tuple(labels)
    classify: Any = transformers.pipeline("text-classification", model=str(model), device="cpu")
    for text in (*SENTENCES, *ODD):
        tokenizer = encoder_of(nlp).loaded.tokenizer
        doc = nlp(text)
        pieces = tokenizer([read_docs([doc])[0].text])[0].ids.tolist()
        logits = reference_logits(model, [*tokenizer.prefix, *pieces, *tokenizer.suffix], TEXTS)
        output = pipe.model.get_ref("output_layer")
        pooled = pipe.model.get_ref("pooled").predict([doc])
        own = pooled @ output.get_param("W").T + output.get_param("b")
        np.testing.assert_allclose(own[0], logits, atol=1e-4)
        probs = torch.tensor(logits).sigmoid() if multi_label else torch.tensor(logits).softmax(-1)
        assert list(doc.cats) == labels
        np.testing.assert_allclose(list(doc.cats.values()), probs.numpy(), atol=1e-4)
    (expected,) = classify([SENTENCES[0]], top_k=None)
    cats = nlp(SENTENCES[0]).cats
    for each in expected:
        assert cats[each["label"]] == pytest.approx(each["score"], abs=1e-4)


def test_a_long_text_is_the_mean_of_its_windows(tmp_path: Path) -> None:
    """Weighted by their tokens."""
    model = write_model(tmp_path, "bert", TEXTS, ["bad", "good"])
    nlp = load_classifier(model, "en")
    doc = nlp(long_text())
    vectors, counts = np.unique(doc.tensor, axis=0, return_counts=True)
    assert len(vectors) > 3
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(model).eval()
    mean = torch.tensor((vectors * counts[:, None]).sum(0) / len(doc), dtype=torch.float32)
    with torch.no_grad():
        states = mean[None, None]
        probs = loaded.classifier(loaded.bert.pooler(states))[0].softmax(-1)
    np.testing.assert_allclose([*doc.cats.values()], probs.numpy(), atol=1e-4)


@pytest.mark.parametrize(
    ("labels", "pipe", "attribute"),
    [(["NOUN", "VERB", "PUNCT"], "morphologizer", "pos_"), (["NN", "VB", "."], "tagger", "tag_")],
)
def test_parts_of_speech(labels: list[str], pipe: str, attribute: str, tmp_path: Path) -> None:
    model = write_model(tmp_path, "distilbert", TOKENS, labels)
    nlp = load_classifier(model, "de")
    assert nlp.pipe_names == ["transformer", pipe]
    seen = set()
    for text in texts():
        tokenizer = encoder_of(nlp).loaded.tokenizer
        pieces = tokenizer([text])[0]
        ids = [*tokenizer.prefix, *pieces.ids.tolist(), *tokenizer.suffix]
        best = reference_logits(model, ids, TOKENS)[len(tokenizer.prefix) :].argmax(axis=1)
        for token in nlp(text):
            number = best[list(pieces.starts).index(token.idx)]
            assert getattr(token, attribute) == labels[number]
            seen.add(number)
    assert len(seen) > 1


@pytest.mark.parametrize("kind", [TOKENS, TEXTS])
def test_copies_and_batches(kind: str, tmp_path: Path) -> None:
    labels = ["O", "B-PER", "I-PER", "E-PER", "S-PER"]
    nlp = load_classifier(write_model(tmp_path, "roberta", kind, labels), "en")
    inputs = [*SENTENCES, *ODD, long_text()]

    def result(doc: Doc) -> Any:
        ents = [(ent.start, ent.end, ent.label_) for ent in doc.ents]
        return ents, [round(score, 4) for score in doc.cats.values()]

    expected = [result(nlp(text)) for text in inputs]
    assert any(ents or cats for ents, cats in expected)
    assert [result(doc) for doc in nlp.pipe(inputs)] == expected
    nlp.to_disk(tmp_path / "saved")
    for copy in (
        spacy.load(tmp_path / "saved"),
        pickle.loads(pickle.dumps(nlp)),
        spacy.blank("en").from_config(nlp.config).from_bytes(nlp.to_bytes()),
    ):
        assert [result(copy(text)) for text in inputs] == expected
    assert result(nlp(""))[0] == []


def test_an_ambiguous_scheme_is_told(tmp_path: Path) -> None:
    model = write_model(tmp_path, "bert", TOKENS, ["O", "B-PER", "I-PER"])
    notes: list[str] = []
    nlp = load_classifier(model, "en", tell=notes.append)
    assert len(notes) == 1
    scheme = nlp.get_pipe("ner").scheme  # type: ignore[attr-defined]
    assert f"read as {scheme}" in notes[0]
    # A model that never predicts B, and one that never predicts I.
    path = model / "model.safetensors"
    weights = load_file(path)
    for tag, expected in ((1, "IOB1"), (2, "IOB2")):
        bias = torch.tensor([0.0, 0.0, 0.0])
        bias[tag] = -100
        save_file({**weights, "classifier.bias": bias}, path, {"format": "pt"})
        assert load_classifier(model, "en", tell=silent).get_pipe("ner").scheme == expected


def test_nameless_labels_are_told(tmp_path: Path) -> None:
    model = write_model(tmp_path, "bert", TEXTS, ["LABEL_0", "LABEL_1"])
    notes: list[str] = []
    load_classifier(model, "en", tell=notes.append)
    assert len(notes) == 1
    assert "no names for its labels" in notes[0]


@pytest.mark.parametrize(
    ("letters", "lowers", "message"),
    [
        (string.ascii_letters, None, "set do_lower_case to false"),
        (string.ascii_letters, True, "set do_lower_case to false"),
        (string.ascii_letters, False, None),
        (string.ascii_lowercase, None, None),
        (string.ascii_lowercase, False, "set do_lower_case to true"),
    ],
)
def test_capitals_that_the_vocabulary_is_not_made_for_are_told(
    letters: str, lowers: bool | None, message: str | None, tmp_path: Path
) -> None:
    """In a folder with the vocabulary alone, transformers makes letters small."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{c}" for c in letters)]
    config = transformers.BertConfig(
        vocab_size=len(pieces),
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        id2label={0: "bad", 1: "good"},
    )
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path)
    (tmp_path / "vocab.txt").write_text("\n".join(pieces) + "\n")
    if lowers is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": lowers}))
    notes: list[str] = []
    load_classifier(tmp_path, "en", tell=notes.append)
    assert [note for note in notes if message and message in note] == notes
    assert len(notes) == (message is not None)


@pytest.mark.parametrize("lang", ["de", "en"])
def test_another_language_is_told(lang: str, tmp_path: Path) -> None:
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=english_tokenizer(), **SPECIAL
    )
    config = transformers.BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
        id2label={0: "NN", 1: "VB"},
        label2id={"NN": 0, "VB": 1},
    )
    transformers.BertForTokenClassification(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    notes: list[str] = []
    load_classifier(tmp_path, lang, tell=notes.append)
    assert any("made for English" in note for note in notes) == (lang == "de")
