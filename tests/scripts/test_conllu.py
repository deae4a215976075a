"""Treebanks with everything that makes them awkward, written here line by line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import spacy

from scripts._conllu import (
    Document,
    NamedSentence,
    entity_spans,
    join_entities,
    misc_tags,
    project_tags,
    read_conllu,
    read_iob2,
    repair_iob,
    treebank_doc,
)
from scripts._notes import Notes
from spacy_distil.errors import CorpusError


def row(index: str, form: str, upos: str = "X", xpos: str = "_", misc: str = "_") -> str:
    return "\t".join((index, form, "_", upos, xpos, "_", "_", "_", "_", misc))


def sentence(sent_id: str, *rows: str) -> str:
    return "\n".join((f"# sent_id = {sent_id}", *rows)) + "\n\n"


def words(sent_id: str, text: str) -> str:
    """A sentence of space-separated words."""
    rows = (row(str(index), word) for index, word in enumerate(text.split(), start=1))
    return sentence(sent_id, *rows)


def named(sent_id: str, pairs: Sequence[tuple[str, str]]) -> str:
    rows = (f"{index}\t{word}\t{tag}\t-\t-" for index, (word, tag) in enumerate(pairs, start=1))
    return "\n".join((f"# sent_id = {sent_id}", *rows)) + "\n\n"


def load(path: Path, text: str, notes: Notes | None = None) -> list[Document]:
    path.write_text(text, encoding="utf8")
    documents = read_conllu(path, Notes() if notes is None else notes)
    if notes is not None:
        for document in documents:
            notes.merge(document.notes)
    return documents


def test_multiword_tokens_keep_words_and_text(tmp_path: Path) -> None:
    notes = Notes()
    text = "# newdoc id = answers-1\n" + sentence(
        "answers-1-1",
        row("1-2", "don't", misc="_"),
        row("1", "do", "AUX", "VBP"),
        row("2", "n't", "PART", "RB"),
        row("3", "go", "VERB", "VB"),
        row("4-5", "it's", misc="SpaceAfter=No"),
        row("4", "it", "PRON", "PRP"),
        row("5", "'s", "AUX", "VBZ"),
        row("6", ".", "PUNCT", "."),
    )
    (document,) = load(tmp_path / "a.conllu", text, notes)
    assert document.sentences[0].words == ["do", "n't", "go", "it", "'s", "."]
    assert document.sentences[0].text == "don't go it's."
    assert notes.counts == {}


def test_multiword_tokens_that_do_not_concatenate_are_written_out(tmp_path: Path) -> None:
    notes = Notes()
    text = "# newdoc id = a-1\n" + sentence(
        "a-1-1",
        row("1", "pain", "NOUN"),
        row("2-3", "du", misc="SpaceAfter=No"),
        row("2", "de", "ADP"),
        row("3", "le", "DET"),
        row("4", ".", "PUNCT"),
    )
    (document,) = load(tmp_path / "a.conllu", text, notes)
    assert document.sentences[0].text == "pain de le."
    assert notes.counts == {"multiword tokens written out as their words": 1}


def test_empty_nodes_are_skipped_and_counted(tmp_path: Path) -> None:
    notes = Notes()
    text = "# newdoc id = a-1\n" + sentence(
        "a-1-1", row("1", "He"), row("1.1", "reported"), row("2", "left")
    )
    (document,) = load(tmp_path / "a.conllu", text, notes)
    assert document.sentences[0].words == ["He", "left"]
    assert notes.counts == {"empty nodes skipped": 1}


def test_document_becomes_one_doc_with_spaces_paragraphs_and_sentences(tmp_path: Path) -> None:
    text = (
        "# newdoc id = weblog-1\n"
        + sentence("weblog-1-1", row("1", "Hi", misc="SpaceAfter=No"), row("2", "!", "PUNCT", "."))
        # No space after the last word of the sentence: the next one follows at once ...
        + sentence("weblog-1-2", row("1", "A", "DET", "DT"), row("2", "b", misc="SpaceAfter=No"))
        + words("weblog-1-3", "c")
        # ... unless a paragraph begins.
        + sentence("weblog-1-4", row("1", "d", misc="SpaceAfter=No"))
        + "# newpar id = p2\n"
        + words("weblog-1-5", "e f")
        + "# newdoc id = email-2\n"
        + words("email-2-1", "g")
    )
    documents = load(tmp_path / "a.conllu", text)
    assert [document.name for document in documents] == ["weblog-1", "email-2"]
    assert documents[0].paragraphs() == ["Hi! A bc d", "e f"]
    doc = treebank_doc(documents[0], ["O"] * 8, {"weblog": 1.0}, spacy.blank("en"))
    assert doc.text == "Hi! A bc d e f"
    assert [sent.text for sent in doc.sents] == ["Hi!", "A b", "c", "d", "e f"]
    assert [token.pos_ for token in doc[:3]] == ["X", "PUNCT", "DET"]
    assert [token.tag_ for token in doc[:3]] == ["", ".", "DT"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("# newdoc id = a\n# sent_id = 1\n1\tHi\t_\tX\n", "a.conllu:3: 4 columns, expected 10"),
        ("# newdoc id = a\n" + sentence("1", row("2", "Hi")), ":3: word index '2', expected '1'"),
        ("# newdoc id = a\n" + sentence("1", row("1", "Hi", "NOUNS")), ":3: UPOS 'NOUNS'"),
        ("# newdoc id = a\n" + sentence("1", row("1-2", "it's"), row("1", "it")), "'it's'"),
        ("", "no sentence in 0 lines"),
    ],
)
def test_malformed_treebanks_name_file_and_line(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(CorpusError) as error:
        load(tmp_path / "a.conllu", text)
    assert expected in str(error.value)


def test_a_byte_order_mark_is_dropped(tmp_path: Path) -> None:
    """Before a comment as before a word."""
    text = "\ufeff# newdoc id = a\n" + sentence("a-1", row("1", "Ann"))
    assert [document.name for document in load(tmp_path / "a.conllu", text)] == ["a"]
    path = tmp_path / "a.iob2"
    path.write_text("\ufeff" + named("a-1", [("Ann", "B-PER")]), encoding="utf8")
    assert list(read_iob2(path)) == ["a-1"]


def test_wrong_encoding_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "a.conllu"
    path.write_bytes(b"# newdoc id = a\n# sent_id = caf\xe9\n")
    with pytest.raises(CorpusError, match=r"a\.conllu, line 2: byte 0xe9 .*iconv"):
        read_conllu(path, Notes())


def test_iob2_types_that_were_not_released_are_o(tmp_path: Path) -> None:
    path = tmp_path / "a.iob2"
    pairs = [("Hindi", "B-OTH"), ("and", "I-OTH"), ("Bo", "B-O"), ("x", "B-"), ("Ann", "B-PER")]
    path.write_text("# newdoc id = a\n" + named("a-1", pairs), encoding="utf8")
    sentence = read_iob2(path)["a-1"]
    assert sentence.tags == ["O", "O", "O", "O", "B-PER"]
    notes = sentence.notes
    assert sum(notes.counts.values()) == 3
    assert notes.counts["entities of the unreleased type 'OTH' read as O"] == 1


@pytest.mark.parametrize("tag", ["B-CITY", "E-PER", "PER", "B"])
def test_unknown_entity_tags_are_refused(tmp_path: Path, tag: str) -> None:
    path = tmp_path / "a.iob2"
    path.write_text(named("a-1", [("x", "O"), ("Ann", tag)]), encoding="utf8")
    if tag == "B":  # bare: the type was lost
        assert read_iob2(path)["a-1"].tags == ["O", "O"]
        return
    with pytest.raises(CorpusError, match=rf"a\.iob2:3: entity tag '{tag}', expected O, B-PER"):
        read_iob2(path)


def test_transitions_are_repaired_and_counted() -> None:
    notes = Notes()
    tags = ["I-PER", "I-PER", "O", "B-ORG", "I-LOC", "I-LOC", "B-LOC"]
    assert repair_iob(tags, "a-1", notes) == [
        *("B-PER", "I-PER", "O", "B-ORG", "B-LOC", "I-LOC", "B-LOC")
    ]
    assert list(notes.counts.values()) == [2]


def test_tags_are_projected_by_characters() -> None:
    notes = Notes()
    # "Mc.Donald" was two words, "Al-Zaman" one; "@Ryan" hides its entity behind a sign.
    source = NamedSentence(
        ["Mc.", "Donald", "saw", "Al-Zaman", "and", "@", "Ryan", "B"],
        ["B-PER", "I-PER", "O", "B-ORG", "O", "O", "B-PER", "I-PER"],
    )
    target = ["Mc.Donald", "saw", "Al", "-", "Zaman", "and", "@Ryan", "B"]
    tags = project_tags(source, target, set(), "a", notes)
    assert tags == ["B-PER", "O", "B-ORG", "I-ORG", "I-ORG", "O", "", ""]
    assert notes.counts == {"entities that do not fit the words, left missing": 1}
    assert project_tags(source, ["other", "words"], set(), "a", notes) is None


def test_entity_across_a_sentence_start_is_left_missing() -> None:
    source = NamedSentence(["New", "York"], ["B-LOC", "I-LOC"])
    assert project_tags(source, ["New", "York"], {0, 1}, "a", Notes()) == ["", ""]
    assert entity_spans(["B-LOC", "I-LOC"]) == [(0, 2, "LOC")]


def test_join_survives_shifted_missing_and_different_sentences(tmp_path: Path) -> None:
    documents = load(
        tmp_path / "a.conllu",
        "# newdoc id = d1\n"
        # In the entity file the first two are one sentence, so the numbers shift.
        + words("d1-1", "Ann left")
        + words("d1-2", "Bob stayed")
        + words("d1-3", "In Rome")
        + "# newdoc id = d2\n"
        + words("d2-1", "Eve slept")
        + words("d2-2", "Kim woke")
        + words("d2-3", "Lee ate"),
    )
    path = tmp_path / "a.iob2"
    person = [("Ann", "B-PER"), ("left", "O"), ("Bob", "B-PER"), ("stayed", "O")]
    path.write_text(
        # Documents in another order; of d2 one sentence is missing, one has other words.
        named("d2-2", [("Kim", "B-PER"), ("slept", "O")])
        + named("d2-1", [("Eve", "B-PER"), ("slept", "O")])
        + named("d1-1", person)
        + named("d1-2", [("In", "O"), ("Rome", "B-LOC")])
        + named("d9-1", [("Who", "O")]),
        encoding="utf8",
    )
    notes = Notes()
    first, second = join_entities(documents, read_iob2(path), path, notes)
    for document in documents:
        notes.merge(document.notes)
    assert first == ["B-PER", "O", "B-PER", "O", "O", "B-LOC"]
    assert second == ["B-PER", "O", "", "", "", ""]
    assert notes.counts["sentences whose entities are left missing"] == 2
    assert notes.counts["entity sentences that the treebank lacks"] == 1
    # Unknown is not "no entity": spaCy's NER gets no gradient from it, and no score.
    doc = treebank_doc(documents[1], second, {}, spacy.blank("en"))
    assert [token.ent_iob_ for token in doc] == ["B", "O", "", "", "", ""]


def treebank(tmp_path: Path, n_sentences: int) -> list[Document]:
    sentences = (words(f"d1-{number}", f"Ann left {number}") for number in range(n_sentences))
    return load(tmp_path / "a.conllu", "# newdoc id = d1\n" + "".join(sentences))


def entities(path: Path, ids: Sequence[str], word: str = "Ann") -> Path:
    """An entity file for the sentences of `treebank`."""
    pairs = ([(word, "B-PER"), ("left", "O"), (sent_id[3:], "O")] for sent_id in ids)
    sentences = (named(sent_id, each) for sent_id, each in zip(ids, pairs, strict=True))
    path.write_text("".join(sentences), encoding="utf8")
    return path


@pytest.mark.parametrize(
    ("ids", "word", "problem"),
    [
        # Ids of another release, another split, an empty file, the words of another treebank, and
        # a file that covers less than half of the sentences.
        (["x1-0", "x1-1", "x1-2", "x1-3", "x1-4"], "Ann", "5 of 5 .* in its 5 sentences. 5 sent"),
        (["d2-0"], "Ann", "5 of 5 sentences of the treebank have no match in its 1 sentences"),
        ([], "Ann", "5 of 5 .* in its 0 sentences. 5 sent_ids .* not in this file, such as 'd1-0'"),
        (["d1-0", "d1-1", "d1-2", "d1-3", "d1-4"], "Bob", "5 of 5 .* 0 sent_ids"),
        (["d1-0", "d1-1"], "Ann", "3 of 5 sentences .* 3 sent_ids .* such as 'd1-2'"),
    ],
)
def test_an_entity_file_that_does_not_match_is_refused(
    tmp_path: Path, ids: list[str], word: str, problem: str
) -> None:
    documents = treebank(tmp_path, 5)
    path = entities(tmp_path / "a.iob2", ids, word)
    with pytest.raises(CorpusError, match=rf"a\.iob2: {problem}"):
        join_entities(documents, read_iob2(path), path, Notes())


def test_gaps_of_an_entity_file_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    documents = treebank(tmp_path, 5)
    path = entities(tmp_path / "a.iob2", ["d1-0", "d1-1", "d1-2", "d1-4"])
    (tags,) = join_entities(documents, read_iob2(path), path, Notes())
    assert tags == [*["B-PER", "O", "O"] * 3, *[""] * 3, "B-PER", "O", "O"]
    told = " ".join(capsys.readouterr().out.split())
    assert "1 of 5 sentences of the treebank have no match" in told
    assert "such as 'd1-3'" in told


def test_sentences_outside_documents_are_documents(tmp_path: Path) -> None:
    notes = Notes()
    text = words("s1", "Ann left") + words("s2", "Bob stayed")
    documents = load(tmp_path / "a.conllu", text, notes)
    assert [document.name for document in documents] == ["s1", "s2"]
    assert notes.counts == {"sentences that are documents of their own": 2}
    documents = load(tmp_path / "b.conllu", text + "# newdoc id = d\n" + text)
    assert [len(document.sentences) for document in documents] == [1, 1, 2]
    # Without ids, too.
    documents = load(tmp_path / "c.conllu", row("1", "Hi") + "\n\n" + row("1", "Ho") + "\n")
    assert [document.sentences[0].words for document in documents] == [["Hi"], ["Ho"]]


@pytest.mark.parametrize("key", ["NER", "NE", "name"])
def test_entities_in_the_misc_column(tmp_path: Path, key: str) -> None:
    notes = Notes()
    documents = load(
        tmp_path / "a.conllu",
        sentence("s1", row("1", "New", misc=f"{key}=B-LOC"), row("2", "York", misc=f"{key}=L-LOC"))
        + sentence("s2", row("1", "Ann", misc=f"SpaceAfter=No|{key}=S-PER"), row("2", "left")),
        notes,
    )
    tags = misc_tags(documents, tmp_path / "a.conllu")
    assert tags == [["B-LOC", "I-LOC"], ["B-PER", "O"]]
    plain = load(tmp_path / "b.conllu", words("s1", "Ann left"))
    assert misc_tags(plain, tmp_path / "b.conllu") == [["", ""]]  # unknown, not "no entity"
    odd = load(tmp_path / "c.conllu", sentence("s1", row("1", "Ann", misc=f"{key}=PER")))
    with pytest.raises(CorpusError, match="sentence 's1' has the entity tag 'PER', expected O"):
        misc_tags(odd, tmp_path / "c.conllu")
