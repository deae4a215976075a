"""Digests: whether files still have the content that was written.

A folder carries them in `SHA256SUMS`, a line per file, as the tool `sha256sum` writes and checks
them. A file that stands alone is sealed: it ends with the digest of its name and content.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import IO, TypeAlias

from spacy_distil.errors import DamagedError
from spacy_distil.runs.files import flush

SUMS = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-f]{64})  (.+)")
# How the names of text files end. spaCy's pipes save settings as `cfg`.
_TEXT = (".json", ".txt", "/cfg")
_CHUNK = 1 << 20
# The content of a file, in one piece and in several.
Content: TypeAlias = bytes | memoryview
Parts: TypeAlias = Sequence[Content]


def add_sums(files: Mapping[str, bytes | Parts]) -> dict[str, bytes | Parts]:
    """Return files, by name, with their `SHA256SUMS`."""
    digests = {name: digest(name, *as_parts(content)) for name, content in files.items()}
    return {**files, SUMS: _dump(digests)}


def as_parts(content: bytes | Parts) -> Parts:
    """Return the content of a file in parts."""
    return [content] if isinstance(content, bytes) else content


def check_sums(files: Mapping[str, Content]) -> dict[str, Content]:
    """Check files against the `SHA256SUMS` among them. RETURNS: the files without it.

    Raises DamagedError, which names the file, if one has changed or is not listed.
    """
    digests = parse_sums(bytes(files[SUMS]), SUMS)
    contents = {name: content for name, content in files.items() if name != SUMS}
    for name, content in contents.items():
        if digests.get(name) != digest(name, content):
            raise DamagedError(_describe(name, name in digests))
    return contents


def write_sums(directory: Path) -> None:
    """Write the `SHA256SUMS` of all files in a directory and below it."""
    files = [path for path in sorted(directory.rglob("*")) if path.is_file()]
    names = [path.relative_to(directory).as_posix() for path in files]
    digests = {
        name: digest_file(path) for name, path in zip(names, files, strict=True) if name != SUMS
    }
    if digests:
        (directory / SUMS).write_bytes(_dump(digests))


def read_sums(directory: Path) -> dict[str, str]:
    """Read the digests of a directory's files, by name. Raises DamagedError if there are none."""
    path = directory / SUMS
    try:
        return parse_sums(path.read_bytes(), str(path))
    except OSError as error:
        raise DamagedError(f"{path} cannot be read: {error.strerror or error}") from error


def check_file(directory: Path, name: str, digests: Mapping[str, str]) -> None:
    """Raise DamagedError if a file is missing or not the one that was written."""
    path = directory / name
    try:
        found = digest_file(path)
    except (OSError, ValueError) as error:  # ValueError: its name cannot be one
        reason = getattr(error, "strerror", None) or error
        raise DamagedError(f"{path} cannot be read: {reason}") from error
    if digests.get(name) != found:
        raise DamagedError(_describe(str(path), name in digests))


def check_directory(directory: Path, names: Collection[str] | None = None) -> None:
    """Check files of a directory against its `SHA256SUMS`.

    names: of the files; None for all that are listed.
    Raises DamagedError, which names the file, if one is missing or has changed.
    """
    digests = read_sums(directory)
    for name in digests if names is None else names:
        check_file(directory, name, digests)


def seal(path: Path) -> None:
    """Append the digest of a file, which covers its name, to it."""
    with path.open("rb") as file:
        found = _hash_stream(file, path.name.encode())
    with path.open("ab") as file:
        file.write(found.digest())
    flush(path)


def check_seal(path: Path) -> None:
    """Raise DamagedError if a file does not end with the digest of its name and all that comes
    before.

    Errors of the system pass through.
    """
    size = hashlib.sha256().digest_size
    with path.open("rb") as file:
        n_bytes = max(0, path.stat().st_size - size)
        found = _hash_stream(file, path.name.encode(), n_bytes)
        if file.read() != found.digest():
            raise DamagedError(_describe(str(path), True))


def digest(name: str, *parts: Content) -> str:
    """Return the digest of a file's content.

    git may write text with the line ends of Windows, which mean the same: they count as "\n".
    """
    if _is_text(name):
        parts = (b"".join(parts).replace(b"\r\n", b"\n"),)
    found = hashlib.sha256()
    for part in parts:
        found.update(part)
    return found.hexdigest()


def digest_file(path: Path) -> str:
    """Return the digest of a file, without keeping its content in memory."""
    if _is_text(path.name):
        return digest(path.name, path.read_bytes())
    with path.open("rb") as file:
        return _hash_stream(file).hexdigest()


def parse_sums(content: bytes, source: str) -> dict[str, str]:
    """Parse a `SHA256SUMS`: digests by name. Raises DamagedError if it is none.

    source: what the error calls it.
    """
    *lines, end = content.decode("utf8", errors="replace").replace("\r\n", "\n").split("\n")
    matches = [_LINE.fullmatch(line) for line in lines]
    digests = {match[2]: match[1] for match in matches if match}
    if not digests or len(digests) != len(lines) or end:
        raise DamagedError(f"{source} is damaged: expected a line '<SHA-256>  <name>' per file")
    return digests


def _is_text(name: str) -> bool:
    return f"/{name}".endswith(_TEXT)


def _dump(digests: Mapping[str, str]) -> bytes:
    return "".join(f"{digests[name]}  {name}\n" for name in sorted(digests)).encode("utf8")


def _hash_stream(file: IO[bytes], first: bytes = b"", n_bytes: int | None = None) -> hashlib._Hash:
    """Hash some bytes, and the next ones of a file. n_bytes: of the file; None for all."""
    found = hashlib.sha256(first)
    left = n_bytes
    while chunk := file.read(_CHUNK if left is None else min(_CHUNK, left)):
        found.update(chunk)
        left = None if left is None else left - len(chunk)
    return found


def _describe(name: str, is_listed: bool) -> str:
    if not is_listed:
        return f"{name} is not listed in {SUMS}"
    return f"{name} has changed since it was written: its SHA-256 is another"
