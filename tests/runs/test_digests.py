from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from spacy_distil.errors import DamagedError
from spacy_distil.runs.digests import (
    SUMS,
    add_sums,
    check_directory,
    check_seal,
    check_sums,
    parse_sums,
    seal,
    write_sums,
)

FILES = {"a.json": b"{}\n", "b.bin": bytes(range(256)) * 9000, "c": b""}


def write(directory: Path) -> None:
    for name, content in {**FILES, "below/d.txt": b"deep"}.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(content)


def test_files_and_digests_in_memory() -> None:
    complete = add_sums(FILES)
    assert complete.keys() == {*FILES, SUMS}
    line = f"{hashlib.sha256(FILES['b.bin']).hexdigest()}  b.bin"
    assert line in complete[SUMS].decode().split("\n")
    assert check_sums(complete) == FILES


@pytest.mark.parametrize("name", FILES)
def test_a_changed_file_in_memory_is_named(name: str) -> None:
    complete = add_sums(FILES)
    with pytest.raises(DamagedError, match=f"{name} has changed"):
        check_sums({**complete, name: FILES[name] + b" "})
    with pytest.raises(DamagedError, match="new is not listed"):
        check_sums({**complete, "new": b""})


def test_a_directory(tmp_path: Path) -> None:
    write(tmp_path)
    write_sums(tmp_path)
    sums = (tmp_path / SUMS).read_text()
    assert [line.split("  ")[1] for line in sums.splitlines()] == [
        "a.json",
        "b.bin",
        "below/d.txt",
        "c",
    ]
    check_directory(tmp_path)
    # Again, with the same result: the digests have none of their own.
    write_sums(tmp_path)
    assert (tmp_path / SUMS).read_text() == sums
    for name in (*FILES, "below/d.txt"):
        path = tmp_path / name
        whole = path.read_bytes()
        path.write_bytes(whole + b"x")
        with pytest.raises(DamagedError, match=f"{path} has changed since it was written"):
            check_directory(tmp_path)
        with pytest.raises(DamagedError, match=f"{path} has changed since it was written"):
            check_directory(tmp_path, [name])
        path.unlink()
        with pytest.raises(DamagedError, match=f"{path} cannot be read: No such file"):
            check_directory(tmp_path)
        path.write_bytes(whole)
    (tmp_path / "new").write_bytes(b"")
    check_directory(tmp_path)  # it was never written by us
    with pytest.raises(DamagedError, match="new is not listed in SHA256SUMS"):
        check_directory(tmp_path, ["new"])
    (tmp_path / SUMS).unlink()
    with pytest.raises(DamagedError, match="SHA256SUMS cannot be read: No such file"):
        check_directory(tmp_path)


def test_line_ends_count_in_binary_files_alone(tmp_path: Path) -> None:
    texts = ("a.json", "vocab.txt", "cfg")
    for name in (*texts, "model"):
        (tmp_path / name).write_bytes(b"1\n2\n")
    write_sums(tmp_path)
    for name in (*texts, SUMS):
        path = tmp_path / name
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    check_directory(tmp_path)
    (tmp_path / "model").write_bytes(b"1\r\n2\r\n")
    with pytest.raises(DamagedError, match=r"model has changed"):
        check_directory(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\n", b"abc  x\n", b"\xff\xfe", b"0" * 64 + b" x\n"])
def test_broken_digests(content: bytes) -> None:
    with pytest.raises(DamagedError, match="here is damaged: expected a line"):
        parse_sums(content, "here")


def test_every_flip_of_digests_is_seen() -> None:
    complete = add_sums({"a.json": b"{}"})
    sums = complete[SUMS]
    for place in range(len(sums)):
        for bit in range(8):
            flipped = sums[:place] + bytes([sums[place] ^ 1 << bit]) + sums[place + 1 :]
            with pytest.raises(DamagedError):
                check_sums({**complete, SUMS: flipped})


@pytest.mark.parametrize("size", [0, 1, 31, 32, 33, 3_000_000])
def test_a_seal(tmp_path: Path, size: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * size)
    seal(path)
    whole = path.read_bytes()
    assert whole == b"x" * size + hashlib.sha256(b"file" + b"x" * size).digest()
    check_seal(path)
    path.with_name("renamed").write_bytes(whole)
    with pytest.raises(DamagedError, match="renamed has changed"):
        check_seal(path.with_name("renamed"))
    for damaged in (
        whole[:-1],
        whole + b"x",
        b"",
        b"y" + whole[1:],
        whole[:-1] + bytes([whole[-1] ^ 1]),
    ):
        path.write_bytes(damaged)
        with pytest.raises(DamagedError, match=f"{path} has changed"):
            check_seal(path)
