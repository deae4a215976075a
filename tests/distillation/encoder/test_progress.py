"""The log of a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from spacy_distil.distillation.encoder.progress import RunLog
from spacy_distil.errors import DistilError


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a full disk: /dev/full")
def test_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "log.jsonl")
    log.write(1, "train", {"loss": 2.0})
    assert log.forget_after(1) == set()
    log.path.unlink()
    log.path.symlink_to("/dev/full")
    with pytest.raises(DistilError, match=r"log\.jsonl cannot be written: No space"):
        log.write(2, "train", {"loss": 1.0})
