"""The corpora, commands and scores of the benchmark of languages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import spacy
import typer
from spacy.tokens import Doc, DocBin
from typer.testing import CliRunner

from benchmarks.languages import corpora, rows, scores, translation
from tests.util import SENTENCES, make_nlp, write_encoder

TREE = """# newdoc id = a
# sent_id = {n}
# text = Ann rennt.
1\tAnn\tAnn\tPROPN\t_\t_\t0\troot\t_\t_
2\trennt\trennen\tVERB\t_\t_\t1\tdep\t_\tSpaceAfter=No
3\t.\t.\tPUNCT\t_\t_\t1\tpunct\t_\t_

"""
SENTENCE = "# sent_id = {n}\n# text = Ann rennt\n1\tAnn\tB-PER\t-\t-\n2\trennt\tO\t-\t-\n\n"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Files as in the five data sets."""
    directory = tmp_path / "data"
    trees = "".join(TREE.replace("id = a", f"id = {n}").format(n=n) for n in range(120))
    words = "".join(SENTENCE.format(n=n) for n in range(3))
    files = {
        **{f"de_gsd/de_gsd-ud-{s}.conllu": trees for s in ("dev", "test")},
        **{
            f"mobie_de/v1_20210811/{s}.conll2003": "-DOCSTART- -X- O O\n\nAnn\tB-org\nrennt\tO\n\n"
            for s in ("train", "dev", "test")
        },
        **{f"sequoia/fr_sequoia-ud-{s}.conllu": trees for s in ("train", "dev", "test")},
        **{
            f"uner_{lang}/{lang}_{name}-ud-{s}.iob2": words
            for lang, name in (("sv", "talbanken"), ("pt", "bosque"))
            for s in ("train", "test")
        },
    }
    for name, content in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf8")
    return directory


def read(path: Path) -> list[Doc]:
    return list(DocBin().from_disk(path).get_docs(spacy.blank("xx").vocab))


def test_corpora(data: Path, tmp_path: Path) -> None:
    corpora.main(data, tmp_path / "out")
    train = read(tmp_path / "out" / "de_train.spacy")
    assert [doc.has_annotation("POS") for doc in train] == [False] + [True] * 20
    assert [doc.has_annotation("ENT_IOB") for doc in train] == [True] + [False] * 20
    assert len(read(tmp_path / "out" / "de_dev.spacy")) == 101
    (doc,) = read(tmp_path / "out" / "de_ner_test.spacy")
    assert [(ent.text, ent.label_) for ent in doc.ents] == [("Ann", "org")]
    assert [token.pos_ for token in read(tmp_path / "out" / "fr_test.spacy")[0]] == [
        *("PROPN", "VERB", "PUNCT")
    ]
    text = (tmp_path / "out" / "text_sv.jsonl").read_text()
    assert [json.loads(line)["text"].strip() for line in text.splitlines()] == ["Ann rennt"] * 3


def test_commands() -> None:
    """Each row makes what the others read, with the settings that its name says."""
    paths = [Path(name) for name in ("out", "data", "encoder", "ewt")]
    (init, train) = map(str, rows.ROWS["de-teacher"].commands(*paths))
    assert "--lang de" in init
    assert "--encoder encoder" in init
    assert "spacy train" in train
    (_, distil, quantize) = map(str, rows.ROWS["fr-15000"].commands(*paths))
    assert "pipeline out/fr-teacher/model-best" in distil
    assert "vocabulary.size 15000" in distil
    assert "--paths.text data/text_fr.jsonl" in distil
    assert "quantize out/fr-15000/model-best out/fr-15000-int8" in quantize
    (_, distil, _) = map(str, rows.ROWS["en-across"].commands(*paths))
    assert '"sv": "data/text_sv.jsonl"' in distil
    assert "vocabulary" not in distil


def test_scores(tmp_path: Path) -> None:
    """A pipeline is right on its own predictions."""
    nlp = make_nlp(write_encoder(tmp_path / "encoder", "bert"), ["tagger", "ner"])
    nlp.to_disk(tmp_path / "nlp")
    docs = [nlp(text) for text in SENTENCES]
    DocBin(docs=docs).to_disk(tmp_path / "ents.spacy")
    test = {"ents": ("ents", tmp_path / "ents.spacy")}
    counts = scores.count(str(tmp_path / "nlp"), test)["ents"]
    assert counts[:, 1:].sum() == 0
    arguments = ["--entities", f"NER={tmp_path / 'ents.spacy'}", "--output", str(tmp_path / "out")]
    arguments += [f"--pipeline={name}={tmp_path / 'nlp'}" for name in ("one", "two")]
    app = typer.Typer()
    app.command()(scores.main)
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    table = (tmp_path / "out" / "scores.md").read_text()
    assert "| 100.00 (100.0 %, 100.0 to 100.0) |" in table


def test_translation(tmp_path: Path) -> None:
    """The teacher finds its own vectors. Texts of test articles are left out of the training."""
    for lang in ("en", "de"):
        articles = [
            {
                "paragraphs": [
                    {
                        "context": f"{lang} {text}",
                        "qas": [{"question": f"{lang} who {text} {n}"} for n in range(3)],
                    }
                ]
            }
            for text in SENTENCES[:8]
        ]
        (tmp_path / f"xquad.{lang}.json").write_text(json.dumps({"data": articles}))
    teacher, student = (
        write_encoder(tmp_path / name, "bert", positions=256, seed=seed)
        for seed, name in enumerate(("teacher", "student"))
    )
    app = typer.Typer()
    app.command()(translation.main)
    options = ["--teacher", str(teacher), "--student", str(student), "--languages", "de"]
    options += ["--layers", "1", "--steps", "6", "--words", "50", "--output", str(tmp_path / "out")]
    result = CliRunner().invoke(app, [str(tmp_path), str(tmp_path / "work"), *options])
    assert result.exit_code == 0, result.output
    lines = (tmp_path / "work" / "de.jsonl").read_text().splitlines()
    texts = [json.loads(line) for line in lines]
    asked = [
        f"{text} {n}" for i, text in enumerate(SENTENCES[:8]) if i not in (3, 7) for n in "012"
    ]
    learned = [text["text"].removeprefix("de ").removeprefix("who ") for text in texts]
    assert learned[: len(asked)] == asked
    assert all(text["original"] == text["text"].replace("de ", "en ", 1) for text in texts)
    rows = json.loads((tmp_path / "out" / "translation.json").read_text())["rows"]
    assert [*rows["English teacher"]] == ["en to de", "de to en", "de to teacher", "cosine x 100"]
    assert rows["English teacher"]["de to teacher"] == rows["English teacher"]["de to en"]
    assert "| its lowest 1 layers |" in (tmp_path / "out" / "translation.md").read_text()
