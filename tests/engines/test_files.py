from __future__ import annotations

import json
from pathlib import Path

import pytest

from spacy_distil.engines.files import CONFIG, TOKENIZER, WEIGHTS, parse_config, read_files
from spacy_distil.errors import WeightsError


def test_three_files_are_read(bert_dir: Path) -> None:
    files = read_files(bert_dir)
    assert files == {name: (bert_dir / name).read_bytes() for name in (CONFIG, WEIGHTS, TOKENIZER)}


@pytest.mark.parametrize("missing", [CONFIG, WEIGHTS, TOKENIZER])
def test_a_missing_file_is_named(tmp_path: Path, missing: str) -> None:
    for name in {CONFIG, WEIGHTS, TOKENIZER} - {missing}:
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(WeightsError, match=missing) as error:
        read_files(tmp_path)
    assert str(error.value).startswith(f"{tmp_path / missing} is missing")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b"{}", b'{"model_type": 3}'])
def test_a_broken_config_is_named(content: bytes) -> None:
    with pytest.raises(WeightsError, match=r"config\.json"):
        parse_config({CONFIG: content})


def test_config(bert_dir: Path) -> None:
    assert parse_config(read_files(bert_dir)) == json.loads((bert_dir / CONFIG).read_text())
