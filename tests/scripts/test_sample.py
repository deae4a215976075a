"""The corpus that comes with the project: reproducible, varied, and not too easy."""

from __future__ import annotations

import random
from collections import defaultdict
from itertools import pairwise
from pathlib import Path

import pytest
import spacy
from spacy.tokens import Doc

from scripts._conllu import read_conllu
from scripts._notes import Notes
from scripts.corpus import SAMPLE, SPLITS, Dataset, make_corpus, read_sample
from scripts.make_sample import (
    Token,
    Words,
    Writer,
    finish,
    make_sample,
    plain,
    read_grammar,
    to_text,
)
from spacy_distil.errors import CorpusError

FILES = ("train.conllu", "dev.conllu", "test.conllu", "unlabelled.txt")


@pytest.fixture(scope="module")
def docs() -> dict[str, list[Doc]]:
    return read_sample(SAMPLE, spacy.blank("en")).docs


def test_committed_files_are_what_the_script_writes(tmp_path: Path) -> None:
    make_sample(tmp_path, seed=0)
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (SAMPLE / name).read_bytes(), (
            f"{name} is not what scripts/make_sample.py writes: run it again"
        )
    assert sum((SAMPLE / name).stat().st_size for name in FILES) < 1_500_000


def test_another_seed_writes_another_corpus(tmp_path: Path) -> None:
    make_sample(tmp_path, seed=1)
    assert (tmp_path / "test.conllu").read_bytes() != (SAMPLE / "test.conllu").read_bytes()


def test_every_split_has_every_label(docs: dict[str, list[Doc]]) -> None:
    assert [len(docs[split]) for split in SPLITS] == [240, 60, 60]
    for split in SPLITS:
        assert {ent.label_ for doc in docs[split] for ent in doc.ents} == {"PER", "ORG", "LOC"}
        topics = [label for doc in docs[split] for label, value in doc.cats.items() if value]
        assert sorted(set(topics)) == ["cooking", "sport", "travel", "work"]
        assert all(topics.count(topic) == len(topics) / 4 for topic in set(topics))
        assert all(3 <= len(list(doc.sents)) <= 8 for doc in docs[split])
        assert len({token.pos_ for doc in docs[split] for token in doc}) >= 15


def test_evaluation_holds_words_and_names_that_train_has_not(docs: dict[str, list[Doc]]) -> None:
    known_words = {token.lower_ for doc in docs["train"] for token in doc}
    known_names = {ent.text for doc in docs["train"] for ent in doc.ents}
    for split in ("dev", "test"):
        words = [token.lower_ for doc in docs[split] for token in doc]
        names = [ent.text for doc in docs[split] for ent in doc.ents]
        assert sum(word not in known_words for word in words) / len(words) > 0.03
        assert sum(name not in known_names for name in names) / len(names) > 0.3


def test_words_and_names_are_ambiguous(docs: dict[str, list[Doc]]) -> None:
    tags = defaultdict(set)
    labels = defaultdict(set)
    for doc in docs["train"]:
        for token in doc:
            tags[token.lower_].add(token.pos_)
        for ent in doc.ents:
            labels[ent.text].add(ent.label_)
    assert {"NOUN", "VERB"} <= tags["book"]
    assert {"NOUN", "VERB"} <= tags["rest"]
    assert {"AUX", "PROPN"} <= tags["will"]
    assert sum(len(found) > 1 for found in labels.values()) >= 10


def test_text_is_tokenised_as_it_is_annotated(docs: dict[str, list[Doc]]) -> None:
    nlp = spacy.blank("en")
    for split in SPLITS:
        for doc in docs[split]:
            assert [token.text for token in nlp.make_doc(doc.text)] == [t.text for t in doc]


def test_text_comment_is_the_text(tmp_path: Path) -> None:
    comments = [
        line.removeprefix("# text = ")
        for line in (SAMPLE / "dev.conllu").read_text(encoding="utf8").splitlines()
        if line.startswith("# text = ")
    ]
    documents = read_conllu(SAMPLE / "dev.conllu", Notes())
    assert [s.text for document in documents for s in document.sentences] == comments


def test_unlabelled_text_is_of_the_promised_size(tmp_path: Path) -> None:
    summary = make_corpus(Dataset.sample, tmp_path)
    assert summary["layers"] == {
        **dict.fromkeys(("pos", "ents", "cats", "cats_exclusive"), True),
        "tag": False,
    }
    assert summary["unlabelled"]["words"] > 30_000
    assert summary["left_out"] == {split: {} for split in SPLITS}


def test_grammar_is_sound() -> None:
    """Every piece and entry can be said, and agrees with itself."""
    grammar = read_grammar()
    words = Words(grammar, everything=True)
    pieces = [
        piece
        for kinds in grammar.stories.values()
        for places in kinds.values()
        for entries in places.values()
        for piece in entries
    ]
    pieces += [piece for entries in grammar.anywhere.values() for piece in entries]
    for piece in pieces:
        writer = Writer(random.Random(0), words, formal=False)
        for sentence in writer.sentences(piece):
            assert sentence[-1].tag == "PUNCT", piece
            assert not sentence[0].text[0].islower(), piece
            text = to_text(sentence)
            assert " ." not in text, piece
            assert " n't" not in text, piece
            for left, right in pairwise(sentence):
                # "to" before a verb is a particle.
                assert (left.text.lower(), left.tag, right.tag) != ("to", "ADP", "VERB"), piece
    for name, entries in grammar.lists.items():
        if name != "team":  # most are called by their town alone
            assert len(entries) == len(set(entries)), name


def test_words_without_part_of_speech_are_refused() -> None:
    with pytest.raises(CorpusError, match=r"'table' has no part of speech: write 'table\|N'"):
        plain("table")


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        ('" go|V , ~" she said|V .', '"Go," she said.'),
        ("a orange|N and a uniform|N ;", "An orange and a uniform;"),
        ("a {age} ~% rise|N", "A "),
        ("i ca ~n't pay|V $ ~9 ( yet|R ) !", "I can't pay $9 (yet)!"),
    ],
)
def test_spacing(items: str, expected: str) -> None:
    writer = Writer(random.Random(0), Words(read_grammar(), everything=True), False)
    assert to_text(finish(writer.tokens(items.split()))).startswith(expected)


def test_article_stays_out_of_the_name() -> None:
    writer = Writer(random.Random(0), Words(read_grammar(), everything=True), False)
    writer.words.lists["paper"] = ["the {town} Herald|P"]
    article, *name = writer.tokens(["{paper}"])
    assert article == Token("the", "DET")
    assert {token.label for token in name} == {"ORG"}  # not LOC, although a town is in it
    assert [token.begin for token in name].count(True) == 1
