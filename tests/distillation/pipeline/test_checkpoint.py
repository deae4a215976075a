"""Checkpoints of a pipeline distillation: each of their files has a digest."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from spacy_distil.distillation.pipeline.checkpoint import Checkpoints
from spacy_distil.errors import DamagedError, DistilError
from spacy_distil.runs.files import explain_write_errors
from tests.util import adam, make_examples, make_nlp, same, weights_of


@pytest.fixture(scope="module")
def checkpoint(bert_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of an encoder and a tagger that have learned."""
    nlp, optimizer = make_nlp(bert_dir, ["tagger"]), adam()
    nlp.update(make_examples(nlp), sgd=optimizer)
    checkpoints = Checkpoints(tmp_path_factory.mktemp("checkpoints"))
    checkpoints.save(3, nlp, optimizer, None, {"results": [[0.5, 3]]}, nlp.to_disk)
    path = checkpoints.newest()
    assert path is not None
    return path


def test_what_was_saved_is_loaded(checkpoint: Path, bert_dir: Path) -> None:
    nlp, optimizer = make_nlp(bert_dir, ["tagger"]), adam()
    before = weights_of(nlp)
    step, state = Checkpoints(checkpoint.parent).load(checkpoint, nlp, optimizer, None)
    assert (step, state) == (3, {"results": [[0.5, 3]]})
    assert not same(before, weights_of(nlp), atol=1e-6)
    assert optimizer.nr_update


@pytest.mark.parametrize("damage", ["flipped", "cut short", "missing"])
def test_a_damaged_file_is_named(checkpoint: Path, bert_dir: Path, damage: str) -> None:
    """Those of spaCy, too, such as the weights of a tagger."""
    nlp, optimizer = make_nlp(bert_dir, ["tagger"]), adam()
    files = [path for path in checkpoint.rglob("*") if path.is_file()]
    assert {"model", "state.json", "optimizer.safetensors"} <= {path.name for path in files}
    for path in files:
        whole = path.read_bytes()
        if not whole:
            continue
        middle = len(whole) // 2
        path.write_bytes(whole[:middle])
        if damage == "flipped":
            path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
        elif damage == "missing":
            path.unlink()
        with pytest.raises(DamagedError, match=f"{checkpoint} is damaged: .*Delete it") as error:
            Checkpoints(checkpoint.parent).load(checkpoint, nlp, optimizer, None)
        assert path.name in str(error.value) or path.parent == checkpoint
        path.write_bytes(whole)


@pytest.mark.parametrize("moment", ["the check", "the loading"])
def test_a_file_that_cannot_be_read_is_no_error_of_writing(
    checkpoint: Path, bert_dir: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """A run takes other errors of the system in its output for such."""
    nlp, optimizer = make_nlp(bert_dir, ["tagger"]), adam()
    path = checkpoint / "state.json"
    whole = path.read_bytes()
    if moment == "the check":
        path.unlink()
        path.mkdir()
    else:
        failure = OSError(
            errno.EIO, os.strerror(errno.EIO), str(checkpoint / "model" / "meta.json")
        )

        def fail(*_: object, **__: object) -> None:
            raise failure

        monkeypatch.setattr(nlp, "from_disk", fail)
    reason = "Is a directory" if moment == "the check" else "Input/output error"
    try:
        with (
            pytest.raises(DistilError, match=f"{checkpoint} cannot be read: .*{reason}") as error,
            explain_write_errors(checkpoint.parent),
        ):
            Checkpoints(checkpoint.parent).load(checkpoint, nlp, optimizer, None)
    finally:
        if path.is_dir():
            path.rmdir()
            path.write_bytes(whole)
    assert not isinstance(error.value, OSError)
    assert "Make it readable, or delete it" in str(error.value)
