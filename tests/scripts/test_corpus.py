"""scripts.corpus: errors, and warnings about a corpus."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from scripts import assets, corpus
from scripts.configure import write_configs
from scripts.corpus import Dataset
from spacy_distil.errors import ConfigError
from tests.text.test_languages import ENGLISH, GERMAN


@pytest.mark.parametrize(
    ("lang", "problem"),
    [
        ("zz", "lang = 'zz': spaCy has no such language"),
        pytest.param(
            "ja",
            "lang = 'ja': Japanese support requires SudachiPy",
            marks=pytest.mark.skipif(
                importlib.util.find_spec("sudachipy") is not None, reason="has Japanese"
            ),
        ),
    ],
)
def test_a_language_that_spacy_lacks_is_an_error_of_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], lang: str, problem: str
) -> None:
    with pytest.raises(SystemExit):
        corpus.main(Dataset.sample, tmp_path / "out", lang=lang)
    printed = capsys.readouterr()
    assert problem in " ".join((printed.out + printed.err).split())
    assert not (tmp_path / "out").exists()


def test_the_table_of_what_was_left_out_is_aligned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """However long a reason is."""
    path = tmp_path / "t.jsonl"
    record = {"text": "x", "cats": {"a": 1, "b": 0}, "key" * 30: 1}
    path.write_text((json.dumps(record) + "\n") * 40, encoding="utf8")
    corpus.report(corpus.make_corpus(Dataset.custom, tmp_path / "out", paths={"train": path}))
    header, _, *rows = capsys.readouterr().out.split("Left out")[1].strip("\n").splitlines()
    column = len("Left out") + header.index("split")
    assert len(rows) == 5
    assert {row[column:].split()[0] for row in rows} == {"train", "dev", "test"}
    assert all(row[column - 1] == " " for row in rows)


def write_texts(path: Path, texts: Sequence[str]) -> Path:
    records = ({"text": text, "label": "ab"[i % 2]} for i, text in enumerate(texts))
    path.write_text("".join(json.dumps(each) + "\n" for each in records), encoding="utf8")
    return path


@pytest.mark.parametrize(
    ("train", "more", "lang", "told"),
    [
        (GERMAN, ENGLISH, "en", ["The training corpus seems to be in German"]),
        (ENGLISH, GERMAN, "en", ["The text without annotation seems to be in German"]),
        (GERMAN, GERMAN, "de", []),
    ],
)
def test_documents_in_another_language_are_told(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    train: str,
    more: str,
    lang: str,
    told: list[str],
) -> None:
    path = write_texts(tmp_path / "t.jsonl", [train] * 100)
    (tmp_path / "more.txt").write_text(f"{more}\n" * 2, encoding="utf8")
    corpus.make_corpus(
        Dataset.custom,
        tmp_path / "out",
        paths={"train": path},
        text=[tmp_path / "more.txt"],
        lang=lang,
    )
    printed = " ".join(capsys.readouterr().out.split())
    assert printed.count("seems to be in") == len(told)
    assert all(f"{each}, but the pipeline's language is English" in printed for each in told)


@pytest.mark.parametrize(
    ("n_words", "n_tags", "told"), [(32, 20, True), (40, 20, False), (9, 9, False)]
)
def test_lemmas_in_the_place_of_tags_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], n_words: int, n_tags: int, told: bool
) -> None:
    path = tmp_path / "t.conll"
    lines = (f"word{i} tag{i % n_tags} {'B-PER' if i == 0 else 'O'}\n" for i in range(n_words))
    path.write_text(("".join(lines) + "\n") * 96, encoding="utf8")
    corpus.make_corpus(Dataset.custom, tmp_path / "out", paths={"train": path})
    printed = " ".join(capsys.readouterr().out.split())
    warning = f"{n_words} different words have {n_tags} different tags (XPOS): are they lemmas?"
    assert (warning in printed) is told


@pytest.mark.parametrize(
    ("n_docs", "n_test", "told"),
    [
        (18, None, "Documents to score: 2 in dev and 2 in test. With fewer than 10, scores"),
        (100, 9, "Documents to score: 9 in test. With"),
        (100, 10, ""),
        (96, None, ""),
    ],
)
def test_too_few_documents_to_score_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], n_docs: int, n_test: int | None, told: str
) -> None:
    """The threshold is the one of `compare`."""
    paths: dict[str, Path | None] = {"train": write_texts(tmp_path / "t.jsonl", ["x"] * n_docs)}
    if n_test is not None:
        paths["test"] = write_texts(tmp_path / "test.jsonl", ["x"] * n_test)
    corpus.make_corpus(Dataset.custom, tmp_path / "out", paths=paths)
    printed = " ".join(capsys.readouterr().out.split())
    assert told in printed
    assert ("Documents to score" in printed) == bool(told)


def test_the_steps_around_it_check_the_language(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first step does so before it downloads a teacher."""
    with pytest.raises(SystemExit):
        assets.main(Dataset.sample, "some/teacher", tmp_path / "assets", lang="zz")
    printed = capsys.readouterr()
    assert "spaCy has no such language" in " ".join((printed.out + printed.err).split())
    with pytest.raises(ConfigError, match="spaCy has no such language"):
        write_configs(tmp_path, tmp_path, [], lang="zz")
