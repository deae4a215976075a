"""The documents of a pipeline distillation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import spacy
from hypothesis import given
from hypothesis import strategies as st
from spacy.language import Language
from spacy.tokens import Doc, DocBin
from spacy.training import Corpus, Example

from spacy_distil.distillation.pipeline.corpus import (
    Texts,
    fingerprint_annotation,
    language_of,
    original_of,
    read_annotated,
    read_transfer_set,
    split_doc,
)
from spacy_distil.errors import ConfigError, CorpusError

NLP = spacy.blank("en")


def texts(path: str | list[str], **settings: Any) -> list[str]:
    return [example.predicted.text for example in Texts(path, **settings)(NLP)]


def test_every_kind_of_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("One paragraph.\nAnother one.\n\nA document.\n")
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": "A line."}) + "\n")
    doc = Doc(NLP.vocab, words=["Ann", "ran"], tags=["NNP", "VBD"])
    DocBin(docs=[doc]).to_disk(tmp_path / "c.spacy")
    expected = ["One paragraph.\nAnother one.", "A document.", "A line.", "Ann ran "]
    assert texts(str(tmp_path)) == expected
    assert texts([str(tmp_path / "b.jsonl"), str(tmp_path / "a.txt")])[0] == "A line."
    assert texts(str(tmp_path), limit=2) == expected[:2]


def test_lines_without_blank_lines_are_documents(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("One.\nTwo.\nThree.\n")
    assert texts(str(path)) == ["One.", "Two.", "Three."]
    assert "a.txt: 3 documents, each line is one" in " ".join(capsys.readouterr().out.split())
    assert texts(str(path), txt_documents="blank_lines") == ["One.\nTwo.\nThree."]
    assert "a.txt: 1 document" in " ".join(capsys.readouterr().out.split())
    path.write_text("One.\nTwo.\n\nThree.\n")
    assert texts(str(path), txt_documents="lines") == ["One.", "Two.", "Three."]


def test_annotation_is_left_out(tmp_path: Path) -> None:
    doc = Doc(NLP.vocab, words=["Ann", "ran"], tags=["NNP", "VBD"], ents=["B-PER", "O"])
    doc.cats = {"a": 1.0}
    DocBin(docs=[doc], store_user_data=True).to_disk(tmp_path / "c.spacy")
    (example,) = Texts(str(tmp_path))(NLP)
    for side in (example.predicted, example.reference):
        assert not side.has_annotation("TAG")
        assert not side.has_annotation("ENT_IOB")
        assert not side.cats


def test_empty_texts_are_left_out(tmp_path: Path) -> None:
    lines = [{"text": text} for text in ("", " \n ", "\t", "a")]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert texts(str(tmp_path)) == ["a"]


def test_long_documents_are_cut_between_sentences() -> None:
    doc = NLP.make_doc("One two three. Four five six seven. Eight nine.")
    assert [part.text.strip() for part in split_doc(doc, 6)] == [
        "One two three.",
        "Four five six seven.",
        "Eight nine.",
    ]
    assert [len(part) for part in split_doc(NLP.make_doc("word " * 25), 10)] == [10, 10, 5]


@given(st.text(alphabet="ab .!?\n。👩🏽‍🚀\u0301", max_size=200), st.integers(1, 12))
def test_cutting_loses_nothing(text: str, max_words: int) -> None:
    doc = NLP.make_doc(text)
    parts = list(split_doc(doc, max_words))
    assert [token.text for part in parts for token in part] == [token.text for token in doc]
    assert "".join(part.text_with_ws for part in (d[:] for d in parts)) == doc.text_with_ws
    assert all(len(part) <= max_words for part in parts)


@pytest.mark.parametrize(
    "settings", [{"max_words": 0}, {"limit": -1}, {"txt_documents": "paragraphs"}]
)
def test_wrong_settings(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        Texts("a.txt", **settings)


def write_lines(path: Path, word: str, n: int) -> str:
    path.write_text("\n".join(f"{word} {i:03}" for i in range(n)))
    return str(path)


def languages(path: dict[str, str | list[str]], **settings: Any) -> list[tuple[str | None, str]]:
    examples = Texts(path, **settings)(NLP)
    return [(language_of(each.predicted), each.predicted.text) for each in examples]


def test_text_of_several_languages(tmp_path: Path) -> None:
    german, english = (write_lines(tmp_path / f"{w}.txt", w, 3) for w in ("wort", "word"))
    found = languages({"de": german, "en": [english, german]})
    assert [lang for lang, _ in found] == ["de"] * 3 + ["en"] * 6
    assert found[0] == ("de", "wort 000")
    assert found[-1] == ("en", "wort 002")
    with pytest.raises(ConfigError, match="lang = 'klingon'"):
        Texts({"klingon": german})
    with pytest.raises(CorpusError, match=r"The unlabelled text \(de\): nowhere"):
        languages({"de": "nowhere"})
    with pytest.raises(ConfigError, match=r"alpha = 1\.5"):
        Texts({"de": german}, alpha=1.5)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("limit", [1, 10, 57, 110, 160, 1000])
def test_a_limit_is_shared_by_alpha(tmp_path: Path, alpha: float, limit: int) -> None:
    sizes = {"de": 100, "en": 40, "fr": 20}  # lines of the same length
    paths: dict[str, str | list[str]] = {
        lang: write_lines(tmp_path / f"{lang}.txt", lang, n) for lang, n in sizes.items()
    }
    found = languages(paths, limit=limit, alpha=alpha)
    assert len(found) == len(set(found)) == min(limit, 160)
    counts = {lang: sum(own == lang for own, _ in found) for lang in sizes}
    for lang, n in counts.items():  # the first ones
        assert sorted(text for own, text in found if own == lang) == [
            f"{lang} {i:03}" for i in range(n)
        ]
    # Who has fewer than its share is read whole, and the others share the rest.
    expected, left, open_ = {}, float(min(limit, 160)), dict(sizes)
    while open_:
        total = sum(n**alpha for n in open_.values())
        full = [lang for lang, n in open_.items() if left * n**alpha / total > n]
        if not full:
            expected |= {lang: left * n**alpha / total for lang, n in open_.items()}
            break
        for lang in full:
            expected[lang] = float(open_.pop(lang))
            left -= expected[lang]
    for lang, n in expected.items():
        assert abs(counts[lang] - n) <= 2.0


def test_originals(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    half = json.dumps({"text": "a", "original": "?"}).replace("?", "\\ud800")
    path.write_text(half)
    (example,) = Texts(str(path))(NLP)
    assert original_of(example.predicted) == "\N{REPLACEMENT CHARACTER}"
    assert original_of(example.predicted.copy()) == "\N{REPLACEMENT CHARACTER}"
    for value in (3, "", " \n", ["a"]):
        path.write_text(
            json.dumps({"text": "a"}) + "\n" + json.dumps({"text": "b", "original": value})
        )
        with pytest.raises(CorpusError, match='line 2: "original" is'):
            texts(str(path))
    path.write_text(json.dumps({"text": "word " * 30_000, "original": "a"}))
    with pytest.raises(CorpusError, match="more than 100,000 characters"):
        texts(str(path))


def test_no_translation_of_a_held_out_original_is_learned(tmp_path: Path) -> None:
    lines = [
        {"text": text, "original": original}
        for i in range(20)
        for text, original in ((f"Satz {i}", f"line {i}"), (f"frase {i}", f"line {i}"))
    ] + [{"text": f"line {i}"} for i in range(20)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    transfer_set = read_transfer_set(NLP, None, Texts(str(tmp_path)), held_out=10)
    assert len(transfer_set.held_out) == 6
    sources = {original_of(doc) or doc.text for doc in transfer_set.held_out}
    assert {original_of(doc) or doc.text for doc in transfer_set.docs}.isdisjoint(sources)
    assert transfer_set.n_text == 60 - 3 * len(sources)


def test_a_path_that_nobody_gave(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--paths\.text"):
        list(Texts(None)(NLP))
    with pytest.raises(CorpusError, match="nowhere"):
        list(Texts(str(tmp_path / "nowhere"))(NLP))


def test_examples_are_numbered_gold_first() -> None:
    def gold(nlp: Language) -> list[Example]:
        return [Example(nlp.make_doc(text), nlp.make_doc(text)) for text in ("a", "b c")]

    def text(nlp: Language) -> list[Example]:
        return [Example(nlp.make_doc("d e f"), nlp.make_doc("d e f"))]

    transfer_set = read_transfer_set(NLP, gold, text)
    assert [one.number for one in transfer_set.all] == [0, 1, 2]
    assert [len(one) for one in transfer_set.gold] == [1, 2]
    assert transfer_set.n_tokens == 6
    assert transfer_set.n_text == 1
    assert len(read_transfer_set(NLP, gold, None).all) == 2
    with pytest.raises(CorpusError, match=r"\[paths\] train"):
        read_transfer_set(NLP, lambda nlp: [], text)
    with pytest.raises(CorpusError, match="set corpus to null"):
        read_transfer_set(NLP, gold, lambda nlp: [])


def test_fingerprints_tell_annotation_apart() -> None:
    def doc(**annotation: object) -> Doc:
        return Doc(NLP.vocab, words=["Ann", "ran"], **annotation)  # type: ignore[arg-type]

    with_cats = doc()
    with_cats.cats = {"a": 1.0}
    with_spans = doc()
    with_spans.spans["sc"] = [with_spans[0:1]]
    docs = [
        doc(),
        doc(tags=["NNP", "VBD"]),
        doc(tags=["NNP", "NNP"]),
        doc(ents=["B-PER", "O"]),
        doc(heads=[1, 1], deps=["nsubj", "ROOT"]),
        with_cats,
        with_spans,
    ]
    found = [fingerprint_annotation([Example(NLP.make_doc("Ann ran"), one)]) for one in docs]
    assert len(set(found)) == len(docs)
    assert found[1] == fingerprint_annotation([Example(NLP.make_doc("x"), docs[1].copy())])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"cannot be read: .*No such file or directory: \S+dev\.spacy'"),
        (b"no docs", r"cannot be read: \[E1014\] .*DocBin"),
        (b"", r"cannot be read: \[E1014\] .*DocBin"),
        (DocBin().to_bytes(), r"has no documents in it"),
    ],
)
def test_a_corpus_that_cannot_be_read_is_named(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    path = tmp_path / "dev.spacy"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(
        CorpusError, match=rf"^The development corpus {message}.*: look at \[paths\] dev"
    ):
        read_annotated(NLP, Corpus(path), which="development", path="dev")
