"""The user's own files: reading, refusals and messages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import spacy
from spacy.tokens import Doc, DocBin

from scripts._custom import make_doc, read_docs
from scripts._notes import Notes
from scripts.corpus import Dataset, make_corpus, report
from spacy_distil.errors import CorpusError

NLP = spacy.blank("en")
TEXT = "Ann Lee went to New York."


def write_jsonl(path: Path, records: list[Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf8")
    return path


def doc_of(record: dict[str, Any], notes: Notes | None = None) -> Doc:
    return make_doc(record, NLP, "x.jsonl:1", Notes() if notes is None else notes)


def entities(doc: Doc) -> list[tuple[str, str]]:
    return [(ent.text, ent.label_) for ent in doc.ents]


def load(directory: Path, split: str) -> list[Doc]:
    return list(DocBin().from_disk(directory / f"{split}.spacy").get_docs(NLP.vocab))


@pytest.mark.parametrize(
    "spans",
    [
        [[0, 7, "PER"], [16, 24, "LOC"]],
        [{"start": 0, "end": 7, "label": "PER"}, {"start": 16, "end": 24, "label": "LOC"}],
    ],
)
def test_entities_in_either_form(spans: list[Any]) -> None:
    doc = doc_of({"text": TEXT, "entities": spans})
    assert entities(doc) == [("Ann Lee", "PER"), ("New York", "LOC")]
    assert doc[2].ent_iob_ == "O"


def test_no_list_of_entities_is_not_an_empty_one() -> None:
    assert not doc_of({"text": TEXT}).has_annotation("ENT_IOB")
    assert doc_of({"text": TEXT, "entities": []}).has_annotation("ENT_IOB")


def test_misaligned_entity_is_dropped_counted_and_left_missing() -> None:
    notes = Notes()
    doc = doc_of({"text": TEXT, "entities": [[1, 7, "PER"], [16, 24, "LOC"]]}, notes)
    assert entities(doc) == [("New York", "LOC")]
    assert [token.ent_iob_ for token in doc] == ["", "", "O", "O", "B", "I", "O"]
    assert notes.counts == {"entities that do not fit the tokens, left missing": 1}
    assert "[1, 7, PER] 'nn Lee'" in notes.examples[next(iter(notes.counts))][0]


def test_nested_entities_keep_the_longest() -> None:
    notes = Notes()
    doc = doc_of({"text": TEXT, "entities": [[16, 19, "X"], [16, 24, "LOC"]]}, notes)
    assert entities(doc) == [("New York", "LOC")]
    assert notes.counts == {"entities inside or across another one": 1}


def test_tokens_with_text_keep_its_spacing() -> None:
    record = {
        "text": "I ca  n't\ngo",
        "tokens": ["I", "ca", "n't", "go"],
        "pos": ["PRON", "AUX", "_", "VERB"],
        "tags": ["PRP", "MD", "RB", ""],
    }
    doc = doc_of(record)
    assert doc.text == record["text"]
    kept = [token for token in doc if not token.is_space]
    assert [token.text for token in kept] == record["tokens"]
    assert [token.pos_ for token in kept] == ["PRON", "AUX", "", "VERB"]
    assert [token.tag_ for token in kept] == ["PRP", "MD", "RB", ""]


def test_tokens_without_text_are_spaced_as_told() -> None:
    record = {"tokens": ["Hi", "!", "You"], "spaces": [False, True, False]}
    assert doc_of(record).text == "Hi! You"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("{", "not JSON"),
        ("[1]", "list, expected an object"),
        ("{}", "neither 'text' nor 'tokens'"),
        ('{"text": 3}', "'text' is 3, expected a string"),
        ('{"text": "Hi", "entities": [[0, 9, "X"]]}', "0 <= start < end <= 2"),
        ('{"text": "Hi", "entities": [[1, 1, "X"]]}', "expected [start, end, label]"),
        ('{"text": "Hi", "entities": {"a": 1}}', "expected a list of [start, end, label]"),
        ('{"text": "Hi", "pos": ["X"]}', "'pos' without 'tokens'"),
        ('{"text": "Hi", "tokens": ["Ho"]}', "'tokens' and 'text' differ"),
        ('{"tokens": ["Hi"], "pos": ["NN"]}', "'pos' has ['NN'], expected UPOS tags: ADJ"),
        ('{"tokens": ["Hi"], "tags": ["A", "B"]}', "2 'tags' for 1 'tokens'"),
        ('{"text": "Hi", "cats": {"a": 2}}', "expected an object of labels with 0 or 1"),
        ('{"text": "Hi", "cats": {"a": 1}, "label": "a"}', "both 'label' and 'cats'"),
    ],
)
def test_errors_name_file_and_line(tmp_path: Path, line: str, expected: str) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text(f'{{"text": "fine"}}\n\n{line}\n', encoding="utf8")
    with pytest.raises(CorpusError) as error:
        read_docs(path, NLP, Notes())
    assert str(error.value).startswith(f"{path}:3: ")
    assert expected in str(error.value)


def test_a_byte_order_mark_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "Ann left."}\r\n{"text": "Bo left."}\r\n')
    texts = [noted.doc.text for noted in read_docs(path, NLP, Notes())]
    assert texts == ["Ann left.", "Bo left."]


def test_unusable_files_are_refused(tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text('{"text": "  "}\n', encoding="utf8")
    broken = tmp_path / "broken.spacy"
    broken.write_bytes(b"nonsense")
    other = tmp_path / "own.csv"
    other.touch()
    for path, expected in (
        (tmp_path / "absent.jsonl", "No such file"),
        (empty, "no document with text"),
        (broken, "not a readable .spacy file"),
        (other, "unknown kind of file '.csv'"),
    ):
        with pytest.raises(CorpusError, match=expected):
            read_docs(path, NLP, Notes())


def test_single_labels_become_exclusive_cats_and_missing_splits_are_taken(tmp_path: Path) -> None:
    labels = ["a", "b", "c"]
    records = [{"text": f"Text {i}.\nMore {i}", "label": labels[i % 3]} for i in range(40)]
    train = write_jsonl(tmp_path / "train.jsonl", records)
    out = tmp_path / "out"
    summary = make_corpus(Dataset.custom, out, paths={"train": train, "dev": None, "test": None})
    sizes = {split: summary["splits"][split]["docs"] for split in ("train", "dev", "test")}
    assert sizes == {"train": 32, "dev": 4, "test": 4}
    texts = {split: {doc.text for doc in load(out, split)} for split in sizes}
    assert len(set.union(*texts.values())) == 40
    for doc in load(out, "dev"):
        assert sorted(doc.cats) == labels
        assert sum(doc.cats.values()) == 1.0
    layers = {"pos": False, "tag": False, "ents": False, "cats": True, "cats_exclusive": True}
    assert summary["layers"] == layers
    reasons = [next(iter(summary["left_out"][split])) for split in ("dev", "test")]
    assert reasons == ["documents taken from train, as no file was given"] * 2
    # One paragraph a line, a blank line between documents, and nothing of dev and test.
    documents = (out / "unlabelled.txt").read_text(encoding="utf8").split("\n\n")
    assert len(documents) == 32
    assert {document.strip() for document in documents} == texts["train"]
    # The same documents every time.
    again = tmp_path / "again"
    make_corpus(Dataset.custom, again, paths={"train": train})
    for name in ("train.spacy", "dev.spacy", "test.spacy", "unlabelled.txt", "corpus.json"):
        assert (out / name).read_bytes() == (again / name).read_bytes()


def test_dev_labels_that_train_lacks_are_counted(tmp_path: Path) -> None:
    train = write_jsonl(tmp_path / "t.jsonl", [{"text": "x", "cats": {"a": 1, "b": 1}}] * 5)
    dev = write_jsonl(tmp_path / "d.jsonl", [{"text": "y", "label": "new"}])
    paths: dict[str, Path | None] = {"train": train, "dev": dev}
    summary = make_corpus(Dataset.custom, tmp_path / "out", paths=paths)
    assert summary["left_out"]["dev"]["categories that train has not"]["count"] == 1
    assert summary["layers"]["cats"]
    assert not summary["layers"]["cats_exclusive"]


def test_spacy_files_keep_their_layers(tmp_path: Path) -> None:
    doc = Doc(
        NLP.vocab,
        words=["Ann", "ran", ".", "Yes"],
        spaces=[True, False, True, False],
        pos=["PROPN", "VERB", "PUNCT", "INTJ"],
        ents=["B-PER", "O", "O", ""],
        sent_starts=[True, False, False, True],
    )
    for split in ("train", "dev", "test"):
        DocBin(docs=[doc], attrs=["POS", "ENT_IOB", "ENT_TYPE", "SENT_START"]).to_disk(
            tmp_path / f"{split}.spacy"
        )
    paths: dict[str, Path | None] = {s: tmp_path / f"{s}.spacy" for s in ("train", "dev", "test")}
    summary = make_corpus(Dataset.custom, tmp_path / "out", paths=paths)
    (found,) = load(tmp_path / "out", "train")
    assert found.text == "Ann ran. Yes"
    assert [token.ent_iob_ for token in found] == ["B", "O", "O", ""]
    assert summary["splits"]["train"]["sentences"] == 2
    assert summary["layers"]["pos"]
    assert not summary["layers"]["tag"]


def test_more_text_from_files_and_directories(tmp_path: Path) -> None:
    train = write_jsonl(
        tmp_path / "t.jsonl", [{"text": f"x {i}", "label": "ab"[i % 2]} for i in range(9)]
    )
    folder = tmp_path / "more"
    folder.mkdir()
    (folder / "a.txt").write_text("One  a\nOne b\n\n\n\nTwo\n", encoding="utf8")
    (folder / "c.txt").write_text("Four\nFive\n", encoding="utf8")
    write_jsonl(folder / "b.jsonl", [{"text": "Three\nThree b"}])
    summary = make_corpus(
        Dataset.custom, tmp_path / "out", paths={"train": train}, text=[folder], limit=3
    )
    text = (tmp_path / "out" / "unlabelled.txt").read_text(encoding="utf8")
    assert text.endswith("\n\nOne a\nOne b\n\nTwo\n\nThree\nThree b\n\nFour\n\nFive\n")
    assert summary["unlabelled"] == {"docs": 8, "paragraphs": 10, "words": 16}
    assert summary["text"] == {"docs": 5, "paragraphs": 7, "words": 10}
    assert summary["splits"]["train"]["docs"] == 3


def test_nothing_to_learn_is_refused(tmp_path: Path) -> None:
    plain = write_jsonl(tmp_path / "t.jsonl", [{"text": f"x {i}"} for i in range(9)])
    same = write_jsonl(tmp_path / "s.jsonl", [{"text": f"x {i}", "label": "a"} for i in range(9)])
    few = write_jsonl(tmp_path / "f.jsonl", [{"text": "x", "label": "a"}] * 2)
    for path, expected in (
        (plain, "no annotation to learn from"),
        (same, "no annotation to learn from"),
        (few, "2 documents are too few to split off dev and test"),
        (None, "needs --train"),
    ):
        with pytest.raises(CorpusError, match=expected):
            make_corpus(Dataset.custom, tmp_path / "out", paths={"train": path})


def test_counts_are_about_the_documents_within_the_limit(tmp_path: Path) -> None:
    """Not about those that --limit leaves out."""
    odd = {"text": TEXT, "entities": [[1, 7, "PER"], [16, 24, "LOC"]]}
    train = write_jsonl(tmp_path / "t.jsonl", [odd] * 400)
    paths: dict[str, Path | None] = {"train": train}
    summary = make_corpus(Dataset.custom, tmp_path / "out", paths=paths, limit=10)
    for split in ("train", "dev", "test"):
        left_out = {reason: n["count"] for reason, n in summary["left_out"][split].items()}
        assert left_out.pop("entities that do not fit the tokens, left missing") == 10
        taken = {} if split == "train" else {"documents taken from train, as no file was given": 10}
        assert left_out == taken


def test_sentences_are_counted_where_they_are_marked(tmp_path: Path) -> None:
    """spaCy calls a document of one token annotated, whoever made it."""
    records: list[Any] = [{"text": text, "label": "ab"[i % 2]} for i, text in enumerate(
        ["Ann left. Bob stayed.", "Yes"] * 10
    )]  # fmt: skip
    paths: dict[str, Path | None] = {"train": write_jsonl(tmp_path / "t.jsonl", records)}
    summary = make_corpus(Dataset.custom, tmp_path / "out", paths=paths)
    assert summary["splits"]["train"]["sentences"] is None
    marked = Doc(NLP.vocab, words=["Yes", "No"], sent_starts=[True, True])
    marked.cats = {"a": 1.0, "b": 0.0}
    plain = NLP("Ann left. Bob stayed.")
    plain.cats = {"a": 0.0, "b": 1.0}
    DocBin(docs=[marked, plain, plain, NLP("Yes")] * 5, store_user_data=True).to_disk(
        tmp_path / "t.spacy"
    )
    train = tmp_path / "t.spacy"
    paths = {"train": train, "dev": train, "test": train}
    counts = make_corpus(Dataset.custom, tmp_path / "out", paths=paths)["splits"]["train"]
    assert counts["sentences"] == 15
    assert counts["docs_without_sentences"] == 10


def test_a_file_whose_entities_do_not_fit_is_refused(tmp_path: Path) -> None:
    """Such as one with offsets of another text, or in bytes."""
    good = {"text": TEXT, "entities": [[0, 7, "PER"]]}
    odd = {"text": TEXT, "entities": [[1, 9, "PER"], [17, 23, "LOC"]]}
    path = write_jsonl(tmp_path / "t.jsonl", [good, odd, odd, {"text": "No list."}])
    with pytest.raises(CorpusError, match=r"4 of 5 entities .*:2 \[1, 9, PER\] 'nn Lee w'"):
        read_docs(path, NLP, Notes())
    assert len(read_docs(write_jsonl(path, [good, good, odd]), NLP, Notes())) == 3


def test_documents_without_any_entity_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = [{"text": f"x {i}", "entities": [], "label": "ab"[i % 2]} for i in range(40)]
    paths: dict[str, Path | None] = {"train": write_jsonl(tmp_path / "t.jsonl", records)}
    report(make_corpus(Dataset.custom, tmp_path / "out", paths=paths))
    assert "say that they have no entities" in " ".join(capsys.readouterr().out.split())
