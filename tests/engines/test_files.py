from __future__ import annotations

import json
from pathlib import Path

import pytest

from spacy_distil.engines.files import (
    CONFIG,
    GRAPH,
    MODELS,
    TOKENIZER,
    WEIGHTS,
    EngineName,
    check_engine,
    check_folder,
    parse_config,
    read_files,
    write_files,
)
from spacy_distil.errors import WeightsError
from spacy_distil.runs.digests import add_sums
from tests.kills import run_and_kill


def test_three_files_are_read(bert_dir: Path) -> None:
    files = read_files(bert_dir, "torch")
    assert files == {name: (bert_dir / name).read_bytes() for name in (CONFIG, WEIGHTS, TOKENIZER)}


def test_each_engine_has_its_model(tmp_path: Path) -> None:
    for name in (CONFIG, WEIGHTS, GRAPH, TOKENIZER):
        (tmp_path / name).write_text(name)
    assert read_files(tmp_path, "torch").keys() == {CONFIG, WEIGHTS, TOKENIZER}
    assert read_files(tmp_path, "onnx").keys() == {CONFIG, GRAPH, TOKENIZER}


@pytest.mark.parametrize("engine", ["torch", "onnx"])
@pytest.mark.parametrize("missing", [CONFIG, "the model", TOKENIZER])
def test_a_missing_file_is_named(tmp_path: Path, missing: str, engine: EngineName) -> None:
    missing = MODELS[engine] if missing == "the model" else missing
    for name in {CONFIG, MODELS[engine], TOKENIZER} - {missing}:
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(WeightsError, match=missing) as error:
        read_files(tmp_path, engine)
    assert str(error.value).startswith(f"{tmp_path / missing} is missing")
    assert f"the three files {CONFIG}, {MODELS[engine]} and {TOKENIZER}" in str(error.value)


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"none.config\.json is missing"):
        read_files(tmp_path / "none", "onnx")


@pytest.mark.parametrize(
    ("engine", "there", "message"),
    [
        (
            "torch",
            GRAPH,
            r"model\.safetensors is missing, which engine = 'torch' runs; model\.onnx is there, "
            r"which engine = 'onnx' runs\..* or set engine = 'onnx' in the model of this encoder "
            r"before you build the pipeline\.$",
        ),
        (
            "onnx",
            WEIGHTS,
            r"model\.onnx is missing, which engine = 'onnx' runs; model\.safetensors is there, "
            r"which engine = 'torch' runs\..* or set engine = 'torch' in .* before you build the "
            r"pipeline; or make an ONNX pipeline of it with 'spacy distil quantize', and load "
            r"that\.$",
        ),
    ],
)
def test_the_file_of_another_engine_is_named(
    tmp_path: Path, engine: EngineName, there: str, message: str
) -> None:
    for name in (CONFIG, there, TOKENIZER):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(WeightsError, match=message):
        read_files(tmp_path, engine)
    with pytest.raises(WeightsError, match=message):
        check_engine({CONFIG, there, TOKENIZER}, engine)


def test_written_files_take_the_place_of_another_engine_s(tmp_path: Path) -> None:
    directory = tmp_path / "new" / "encoder"
    for model in (WEIGHTS, GRAPH, WEIGHTS):
        files = {CONFIG: b"{}", model: model.encode(), TOKENIZER: b"t"}
        write_files(directory, files)
        (directory / "README.md").write_bytes(b"mine")
        found = {path.name: path.read_bytes() for path in directory.iterdir()}
        assert found == {**add_sums(files), "README.md": b"mine"}


def test_a_kill_leaves_the_old_encoder_or_the_new_one(tmp_path: Path) -> None:
    """Killed before each of its file operations."""
    directory = tmp_path / "encoder"
    old = {CONFIG: b"old", WEIGHTS: b"old", TOKENIZER: b"old"}
    new = {CONFIG: b"new", GRAPH: b"new", TOKENIZER: b"new"}
    states = (add_sums(old), add_sums(new))
    seen, kill_at, was_killed = [], 0, True
    while was_killed:
        kill_at += 1
        write_files(directory, old)
        was_killed = run_and_kill(lambda: write_files(directory, new), tmp_path, kill_at)
        found = {path.name: path.read_bytes() for path in directory.iterdir()}
        assert found in states
        seen.append(found)
    assert (seen[0], seen[-1]) == states


def test_a_link_in_the_place_of_a_file_is_replaced(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"another's")
    directory = tmp_path / "encoder"
    directory.mkdir()
    for other in ((), ("README.md",)):  # replaced as a whole, and file by file
        for name in other:
            (directory / name).write_bytes(b"mine")
        (directory / WEIGHTS).unlink(missing_ok=True)
        (directory / WEIGHTS).symlink_to(target)
        write_files(directory, {CONFIG: b"{}", WEIGHTS: b"w", TOKENIZER: b"t"})
        assert not (directory / WEIGHTS).is_symlink()
        assert (directory / WEIGHTS).read_bytes() == b"w"
        assert target.read_bytes() == b"another's"


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b"{}", b'{"model_type": 3}'])
def test_a_broken_config_is_named(content: bytes) -> None:
    with pytest.raises(WeightsError, match=r"config\.json"):
        parse_config({CONFIG: content})


def test_config(bert_dir: Path) -> None:
    assert parse_config(read_files(bert_dir, "torch")) == json.loads(
        (bert_dir / CONFIG).read_text()
    )


@pytest.mark.parametrize("has_digests", [False, True])
def test_a_pointer_of_git_lfs_is_named(has_digests: bool, tmp_path: Path) -> None:
    write_files(tmp_path, {CONFIG: b"{}", WEIGHTS: b"w", TOKENIZER: b"t"})
    if not has_digests:
        (tmp_path / "SHA256SUMS").unlink()
    (tmp_path / WEIGHTS).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    for read in (lambda: read_files(tmp_path, "torch"), lambda: check_folder(tmp_path)):
        with pytest.raises(WeightsError, match=r"model\.safetensors is a pointer of git-lfs"):
            read()
