"""The corpus of several languages, and scores by language."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import spacy
from spacy.tokens import DocBin
from spacy.training import Example

from scripts import evaluate
from scripts._conllu import find_spaces
from scripts._languages import TREEBANKS
from scripts.corpus import SPLITS, Dataset, make_corpus
from spacy_distil.errors import ConfigError, CorpusError
from tests.scripts.test_corpus import write_texts

DOCUMENT = "# newdoc id = answers-{n}\n"
CONLLU = """# sent_id = {n}
# text = Ann left.
1\tAnn\t_\tPROPN\tNNP\t_\t0\t_\t_\t_
2\tleft\t_\tVERB\tVBD\t_\t0\t_\t_\tSpaceAfter=No
3\t.\t_\tPUNCT\t.\t_\t0\t_\t_\t_

"""
IOB2 = """# sent_id = {n}
# text = Ann left.
1\tAnn\tB-PER\t-\t-
2\tleft\tO\t-\t-
3\t.\tO\t-\t-

"""


@pytest.fixture
def assets(tmp_path: Path) -> Path:
    """Six documents in each file; in an entity file alone they have two sentences."""
    directory = tmp_path / "assets"
    directory.mkdir()
    for treebank in TREEBANKS:
        per_document = 2 if treebank.suffixes == (".iob2",) else 1
        for split in SPLITS:
            for name in treebank.files(split):
                body = IOB2 if name.endswith("iob2") else CONLLU
                text = ""
                for n in range(6 * per_document):
                    if n % per_document == 0 and treebank.lang != "fr":
                        text += DOCUMENT.format(n=n)
                    text += body.format(n=f"{split}-{n}")
                (directory / name).write_text(text, encoding="utf8")
    return directory


def read(path: Path) -> list[Any]:
    return list(DocBin().from_disk(path).get_docs(spacy.blank("xx").vocab))


def test_what_a_language_lacks_is_missing(assets: Path, tmp_path: Path) -> None:
    summary = make_corpus(Dataset.languages, tmp_path / "corpus", assets=assets, lang="xx")
    assert summary["splits"]["test"]["languages"] == dict.fromkeys(
        ("de", "en", "fr", "pt", "sv"), 6
    )
    assert {name for name in summary["layers"] if summary["layers"][name]} == {"pos", "ents"}
    docs = read(tmp_path / "corpus" / "train.spacy")
    assert len(docs) == 30
    for doc in docs:
        lang = doc.user_data["lang"]
        sentence = "Ann left."
        assert doc.text == (f"{sentence} {sentence}" if lang in ("sv", "pt") else sentence)
        assert not any(token.tag_ for token in doc)
        assert not doc.cats
        has_pos, has_ents = lang in ("en", "fr", "de"), lang in ("en", "sv", "pt")
        assert doc.has_annotation("POS") is has_pos
        assert doc.has_annotation("ENT_IOB") is has_ents
        assert [ent.text for ent in doc.ents] == ["Ann"] * (len(list(doc.sents)) * has_ents)
        # Unknown to a pipe is not the same as none.
        tags = Example(doc.copy(), doc).get_aligned_ner()
        assert (set(tags) == {None}) is not has_ents


def test_each_language_has_a_test_set(assets: Path, tmp_path: Path) -> None:
    out = tmp_path / "corpus"
    make_corpus(Dataset.languages, out, assets=assets, lang="xx", limit=10)
    names = sorted(path.stem for path in out.glob("*.spacy"))
    assert names == sorted([*SPLITS, *(f"test-{treebank.lang}" for treebank in TREEBANKS)])
    for treebank in TREEBANKS:
        docs = read(out / f"test-{treebank.lang}.spacy")
        assert [doc.user_data["lang"] for doc in docs] == [treebank.lang] * 2
    # Those of an old corpus do not stay.
    train = write_texts(tmp_path / "train.jsonl", ["Ann left."] * 8)
    make_corpus(Dataset.custom, out, paths={"train": train}, lang="xx")
    assert sorted(path.stem for path in out.glob("*.spacy")) == sorted(SPLITS)


def test_the_language_of_the_user_s_own_documents(tmp_path: Path) -> None:
    records = [
        {"text": "Ann left.", "label": "ab"[i % 2], "lang": ("fr", "de", None)[i % 3]}
        for i in range(30)
    ]
    train = tmp_path / "train.jsonl"
    train.write_text("\n".join(map(json.dumps, records)), encoding="utf8")
    summary = make_corpus(Dataset.custom, tmp_path, paths={"train": train}, lang="xx")
    counts = summary["splits"]["train"]["languages"]
    assert set(counts) == {"de", "fr"}
    assert sum(counts.values()) < summary["splits"]["train"]["docs"]
    train.write_text('{"text": "Ann", "label": "a", "lang": "../x"}\n' * 30, encoding="utf8")
    with pytest.raises(CorpusError, match=r"'lang' is '\.\./x', expected the code"):
        make_corpus(Dataset.custom, tmp_path, paths={"train": train}, lang="xx")


def test_several_languages_need_the_code_for_many(assets: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"in several languages \(en, fr, de, sv, pt\)") as error:
        make_corpus(Dataset.languages, tmp_path / "corpus", assets=assets, lang="en")
    assert "--vars.lang xx" in str(error.value)


def test_spaces_of_a_sentence() -> None:
    assert find_spaces(["Ann", "left", "."], "Ann left.") == [True, False, True]
    assert find_spaces(["«", "a", "b"], "«a\u00a0 b") == [False, True, True]
    with pytest.raises(ValueError, match="expected the word 'right' in '# text' before 'left"):
        find_spaces(["Ann", "right"], "Ann left.")
    with pytest.raises(ValueError, match="expected the word"):
        find_spaces(["Ann"], "")


def test_each_language_is_scored(
    assets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "corpus"
    make_corpus(Dataset.languages, out, assets=assets, lang="xx")
    nlp = spacy.blank("xx")
    ruler: Any = nlp.add_pipe("entity_ruler")
    ruler.add_patterns([{"label": "PER", "pattern": "Ann"}])
    (tmp_path / "pipelines" / "seed-0").mkdir(parents=True)
    nlp.to_disk(tmp_path / "pipelines" / "seed-0" / "model-best")
    evaluate.main(tmp_path / "pipelines", tmp_path / "metrics" / "rules", out)
    names = sorted(path.name for path in (tmp_path / "metrics").iterdir())
    langs = ("de", "en", "fr", "pt", "sv")
    assert names == sorted(["rules-seed-0.json", *(f"rules-seed-0-{lang}.json" for lang in langs)])
    for lang in langs:
        scores = json.loads((tmp_path / "metrics" / f"rules-seed-0-{lang}.json").read_text())
        assert scores["ents_f"] == (1.0 if lang in ("en", "pt", "sv") else None)
    printed = capsys.readouterr().out
    assert "100.0%" in printed
