"""scripts.corpus: errors, and warnings about a corpus."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from scripts import assets, corpus
from scripts.configure import write_configs
from scripts.corpus import Dataset
from spacy_distil.errors import ConfigError


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
