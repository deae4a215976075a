"""Noisy copies of documents keep their annotation."""

from __future__ import annotations

import random
import unicodedata
from collections import Counter

import pytest
import spacy
from hypothesis import given, settings
from hypothesis import strategies as st
from spacy.tokenizer import Tokenizer
from spacy.tokens import Doc, Span, SpanGroup
from spacy.training import Example

from spacy_distil.noise import CASING, KINDS, TYPOS, add_noise
from spacy_distil.noise.documents import insert_spaces, replace_words
from spacy_distil.noise.keyboards import neighbours
from spacy_distil.noise.kinds import CHANGES, is_long

TEXTS = [
    "",
    "   ",
    "Bob lives in San Francisco, California.",
    "Don't go 🙂 there, señor Müller\n\nÉcole e\u0301cole",
    "我们 住在 北京。",
    "\x00\x01 control characters\t here",
]


def make_doc() -> Doc:
    """A doc with annotation of every kind."""
    nlp = spacy.blank("en")
    doc = Doc(
        nlp.vocab,
        words=["Barack", "Obama", "visited", "beautiful", "Lisbon", ".", "People", "cheered", "!"],
        spaces=[True, True, True, True, False, True, True, False, False],
        tags=["NNP", "NNP", "VBD", "JJ", "NNP", ".", "NNS", "VBD", "."],
        pos=["PROPN", "PROPN", "VERB", "ADJ", "PROPN", "PUNCT", "NOUN", "VERB", "PUNCT"],
        morphs=["Number=Sing"] + [""] * 7 + ["PunctType=Peri"],
        lemmas=["Barack", "Obama", "visit", "beautiful", "Lisbon", ".", "people", "cheer", "!"],
        heads=[1, 2, 2, 4, 2, 2, 7, 7, 7],
        deps=["compound", "nsubj", "ROOT", "amod", "dobj", "punct", "nsubj", "ROOT", "punct"],
        ents=["B-PER", "I-PER", "O", "O", "B-LOC", "O", "O", "O", "O"],
    )
    doc.cats = {"news": 1.0}
    doc.spans["all"] = SpanGroup(
        doc, name="all", spans=[Span(doc, 1, 5, label="X")], attrs={"scores": [0.5]}
    )
    doc.user_data["original"] = "text"
    return doc


def annotation(doc: Doc) -> list[tuple[object, ...]]:
    """Of the tokens that are no whitespace, heads and sentences included."""
    own = [token for token in doc if not token.is_space]
    number = {token.i: i for i, token in enumerate(own)}
    return [
        (
            *(token.tag_, token.pos_, str(token.morph), token.lemma_, token.dep_),
            number[token.head.i],
            token.is_sent_start,
            token.ent_type_,
        )
        for token in own
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_all_annotation_stays_with_its_words(kind: str) -> None:
    doc = make_doc()
    for seed in range(10):
        noisy = add_noise(doc, kind, 1.0, random.Random(seed))
        assert annotation(noisy) == annotation(doc)
        assert [ent.label_ for ent in noisy.ents] == ["PER", "LOC"]
        assert [len(ent.text.split()) for ent in noisy.ents] == [2, 1]
        (span,) = noisy.spans["all"]
        assert (span.label_, noisy.spans["all"].attrs) == ("X", {"scores": [0.5]})
        assert span[0].i == noisy.ents[0][-1].i
        assert noisy.cats == doc.cats
        assert noisy.user_data == {"original": "text"}
        # The pipeline's own tokens can be aligned with it.
        own = Tokenizer(doc.vocab, token_match=None)(noisy.text)
        assert Example(own, noisy).get_aligned_ner()


def test_the_original_stays_as_it_is() -> None:
    doc = make_doc()
    before = doc.to_bytes()
    for kind in KINDS:
        add_noise(doc, kind, 1.0, random.Random(0))
    assert doc.to_bytes() == before


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", TEXTS)
def test_odd_texts(kind: str, text: str) -> None:
    doc = spacy.blank("en").make_doc(text)
    for seed in range(5):
        noisy = add_noise(doc, kind, 1.0, random.Random(seed))
        if kind != "spaces":
            assert len(noisy) == len(doc)
        assert len([t for t in noisy if not t.is_space]) == len([t for t in doc if not t.is_space])
        assert all(token.text for token in noisy)


@given(st.text(max_size=60), st.sampled_from(KINDS), st.integers(0, 99))
@settings(max_examples=150, deadline=None)
def test_any_text(text: str, kind: str, seed: int) -> None:
    doc = spacy.blank("xx").make_doc(text)
    noisy = add_noise(doc, kind, 0.7, random.Random(seed))
    again = add_noise(doc, kind, 0.7, random.Random(seed))
    assert noisy.text == again.text
    assert len([t for t in noisy if not t.is_space]) >= len([t for t in doc if not t.is_space])


def test_typos_change_long_words_once() -> None:
    rng = random.Random(0)
    for word in ("Lisbon", "beautiful", "mississippi"):
        for _ in range(50):
            assert len(CHANGES["drop"](word, rng, "en")) == len(word) - 1
            assert len(CHANGES["double"](word, rng, "en")) == len(word) + 1
            swapped = CHANGES["swap"](word, rng, "en")
            assert Counter(swapped) == Counter(word)
            assert sum(a != b for a, b in zip(swapped, word, strict=True)) == 2
            typo = CHANGES["keyboard"](word, rng, "en")
            (place,) = [i for i, (a, b) in enumerate(zip(typo, word, strict=True)) if a != b]
            assert typo[place].lower() in neighbours("en")[word[place].lower()]
            assert typo[place].isupper() == word[place].isupper()
    doc = Doc(spacy.blank("en").vocab, words=["cat", "2024", "e-mail", "word"])
    for kind in TYPOS:
        noisy = add_noise(doc, kind, 1.0, random.Random(1))
        assert [token.text for token in noisy][:3] == ["cat", "2024", "e-mail"]
        assert noisy[3].text != "word"


def test_rate_is_a_share_of_the_words() -> None:
    words = ["something"] * 4000 + ["a"] * 1000
    doc = Doc(spacy.blank("en").vocab, words=words)
    noisy = add_noise(doc, "keyboard", 0.15, random.Random(0))
    changed = sum(token.text != word for token, word in zip(noisy, words, strict=True))
    assert 0.13 < changed / 4000 < 0.17  # four standard deviations are 0.023
    assert add_noise(doc, "keyboard", 0.0, random.Random(0)).text == doc.text


def test_casing_changes_the_whole_document() -> None:
    doc = make_doc()
    for kind, change in (("lower", str.lower), ("upper", str.upper), ("title", str.title)):
        assert kind in CASING
        assert add_noise(doc, kind, 0.01, random.Random(0)).text == change(doc.text)


def test_accents_and_lookalikes() -> None:
    doc = spacy.blank("fr").make_doc("Élève à Orléans Ça")
    assert add_noise(doc, "accents", 1.0, random.Random(0)).text == "Eleve a Orleans Ca"
    shaped = add_noise(doc, "lookalikes", 1.0, random.Random(0))
    assert shaped.text != doc.text
    assert add_noise(shaped, "lookalikes", 1.0, random.Random(0)).text == doc.text


def test_marks_of_other_scripts_stay() -> None:
    def plain(word: str) -> str:
        return CHANGES["accents"](word, random.Random(0), "xx")

    for word in ("мой", "чай", "パン", "हिन्दी", "\u0301", "שָׁלוֹם"):
        assert plain(word) == unicodedata.normalize("NFC", word)
    assert plain("ёлка Ёж") == "елка Еж"
    assert plain("Ἀθῆναι Việt é e\u0301") == "Αθηναι Viet e e"
    assert is_long("विद्यालय")
    assert not is_long("a1b2")
    (doc,) = spacy.blank("hi").pipe(["हिन्दी भाषा विद्यालय अध्यापक पुस्तकालय"])
    assert add_noise(doc, "drop", 1.0, random.Random(0)).text != doc.text


def test_empty_spans_and_extensions_of_the_document() -> None:
    doc = make_doc()
    n = len(doc)
    doc.user_data["._.", "source", None, None] = "mail"
    doc.user_data["._.", "score", 0, 4] = 0.5
    doc.spans["empty"] = [Span(doc, 0, 0), Span(doc, 2, 2), Span(doc, n, n)]
    for kind in ("drop", "spaces"):
        noisy = add_noise(doc, kind, 1.0, random.Random(0))
        starts = [span.start for span in noisy.spans["empty"]]
        assert [span.end for span in noisy.spans["empty"]] == starts
        assert (starts[0], starts[2]) == (0, len(noisy))
        assert noisy[starts[1]].text == doc[2].text or kind == "drop"
        assert noisy.user_data["._.", "source", None, None] == "mail"
        assert ("._.", "score", 0, 4) not in noisy.user_data


def test_keyboards() -> None:
    near = neighbours("en")
    assert set(near["g"]) == set("fhtyvb")
    assert all(a in near[b] for a in near for b in near[a])  # both ways
    assert "z" in neighbours("de")["t"]
    assert "a" not in neighbours("fr")["s"]
    assert "q" in neighbours("fr")["s"]
    assert neighbours("sv") == near


def test_norms_of_words_that_stay() -> None:
    doc = spacy.blank("en").make_doc("They don't swim")
    assert doc[2].norm_ == "not"
    noisy = replace_words(doc, {3: "swum"})
    assert [token.norm_ for token in noisy] == ["they", "do", "not", "swum"]


def test_spaces_are_tokens_as_the_tokenizer_makes_them() -> None:
    nlp = spacy.blank("en")
    doc = nlp.make_doc("one two three four five")
    noisy = insert_spaces(doc, {0: " ", 1: "\N{NO-BREAK SPACE}", 2: "\t", 3: "\N{THIN SPACE}"})
    assert noisy.text == "one  two\N{NO-BREAK SPACE}three\tfour\N{THIN SPACE}five"
    expected = nlp.make_doc(noisy.text)
    assert [(t.text, t.whitespace_) for t in noisy] == [(t.text, t.whitespace_) for t in expected]


def test_missing_annotation_stays_missing() -> None:
    nlp = spacy.blank("en")
    doc = Doc(nlp.vocab, words=["some", "plain", "words"])
    for kind in KINDS:
        noisy = add_noise(doc, kind, 1.0, random.Random(0))
        for attr in ("TAG", "POS", "ENT_IOB", "DEP", "LEMMA"):
            assert not noisy.has_annotation(attr)


def test_long_words() -> None:
    assert is_long("word")
    assert is_long("слово")
    assert not is_long("abc")
    assert not is_long("ab3d")


def test_a_very_long_document() -> None:
    doc = spacy.blank("en").make_doc("Thousands of words follow one another. " * 7500)
    assert len(doc.text) > 290_000
    noisy = add_noise(doc, "keyboard", 0.15, random.Random(0))
    assert len(noisy) == len(doc)
