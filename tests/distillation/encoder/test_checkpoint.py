"""Checkpoints are complete or absent, the newest stay, and reading them runs no code."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from spacy_distil.distillation import distil_encoder
from spacy_distil.distillation.encoder.checkpoint import Checkpoints
from spacy_distil.errors import DistilError, WriteError
from spacy_distil.runs.files import UNFINISHED

TeacherDir = Callable[..., Path]
CPU = torch.device("cpu")


@pytest.fixture
def accelerator() -> Accelerator:
    AcceleratorState._reset_state(reset_partial_state=True)
    return Accelerator(cpu=True)


def state(step: int) -> dict[str, Any]:
    """A state of the same types as the states of a distiller and an optimizer."""
    weights = torch.full((5000,), float(step))
    optimizer = {"state": {0: {"exp_avg": weights}}, "param_groups": [{"betas": (0.9, 0.98)}]}
    return {"distiller": {"weight": weights}, "optimizer": optimizer}


@contextmanager
def short_files() -> Iterator[None]:
    """A system that refuses files longer than 8 kB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_a_saved_state_is_loaded(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=1)
    assert checkpoints.steps() == []
    checkpoints.save(7, state(7))
    assert Checkpoints(tmp_path / "checkpoints", keep=1).steps() == [7]
    loaded = checkpoints.load(7, CPU)
    assert torch.equal(loaded["distiller"]["weight"], state(7)["distiller"]["weight"])
    assert torch.equal(loaded["optimizer"]["state"][0]["exp_avg"], loaded["distiller"]["weight"])
    assert loaded["optimizer"]["param_groups"] == [{"betas": (0.9, 0.98)}]


@pytest.mark.parametrize(
    ("keep", "kept"), [(1, [[9], [10], [200]]), (2, [[9], [9, 10], [10, 200]])]
)
def test_the_oldest_are_deleted(tmp_path: Path, keep: int, kept: list[list[int]]) -> None:
    checkpoints = Checkpoints(tmp_path, keep=keep)
    for step, expected in zip((9, 10, 200), kept, strict=True):
        checkpoints.save(step, state(step))
        assert checkpoints.steps() == expected
        assert all(checkpoints.load(s, CPU)["distiller"]["weight"][0] == s for s in expected)
    assert len(names(tmp_path)) == keep


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=1)
    with short_files(), pytest.raises(WriteError, match=r"step-00000003\.pt cannot be written: "):
        checkpoints.save(3, state(3))
    assert checkpoints.newest_step() is None
    checkpoints.save(3, state(3))
    with short_files(), pytest.raises(WriteError, match=r"step-00000006\.pt cannot be written: "):
        checkpoints.save(6, state(6))
    assert names(tmp_path / "checkpoints") == ["step-00000003.pt"]
    assert checkpoints.newest_step() == 3
    assert checkpoints.load(3, CPU)["distiller"]["weight"][0] == 3


def test_a_directory_that_cannot_be_made_is_explained(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file in its place")
    with pytest.raises(WriteError, match=r"step-00000003\.pt cannot be written"):
        Checkpoints(tmp_path / "checkpoints", keep=1).save(3, state(3))


def test_an_unfinished_file_is_no_checkpoint(tmp_path: Path) -> None:
    """It is deleted before the next is written: repeated kills must not fill the disk."""
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(3, state(3))
    for name in ("one", "two"):
        scratch = tmp_path / f"{UNFINISHED}{name}"
        scratch.mkdir()
        (scratch / "step-00000006.pt").write_bytes(b"half of a checkpoint")
    assert checkpoints.steps() == [3]
    checkpoints.save(9, state(9))
    assert names(tmp_path) == ["step-00000009.pt"]


def test_files_of_other_names_are_left_alone(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(3, state(3))
    (tmp_path / "step-00000003.pt").rename(tmp_path / "step-00000003.pt.damaged")
    assert checkpoints.steps() == []
    checkpoints.save(6, state(6))
    assert names(tmp_path) == ["step-00000003.pt.damaged", "step-00000006.pt"]


@pytest.mark.parametrize("damage", ["empty", "cut short", "other", "flipped", "swapped"])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, damage: str) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (3, 6):
        checkpoints.save(step, state(step))
    path = tmp_path / "step-00000006.pt"
    whole = path.read_bytes()
    middle = whole.index(state(6)["distiller"]["weight"].numpy().tobytes())
    path.write_bytes(
        {
            "empty": b"",
            "cut short": whole[:-500],
            "other": b"PK no zip",
            "flipped": whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
            "swapped": (tmp_path / "step-00000003.pt").read_bytes(),
        }[damage]
    )
    with pytest.raises(DistilError) as error:
        checkpoints.load(6, CPU)
    for part in (f"the checkpoint {path} cannot be read", "Remove it", "from the one before it"):
        assert part in str(error.value)
    path.unlink()
    assert checkpoints.steps() == [3]


def test_a_checkpoint_that_cannot_be_read_may_be_whole(tmp_path: Path) -> None:
    (tmp_path / "step-00000003.pt").mkdir()
    with pytest.raises(DistilError, match="cannot be read: Is a directory"):
        Checkpoints(tmp_path, keep=1).load(3, CPU)


def test_an_old_checkpoint_that_cannot_be_deleted_is_explained(tmp_path: Path) -> None:
    """After the new one has been written."""
    checkpoints = Checkpoints(tmp_path, keep=1)
    (tmp_path / "step-00000003.pt").mkdir()
    with pytest.raises(WriteError, match=r"step-00000003\.pt cannot be written: "):
        checkpoints.save(6, state(6))
    assert checkpoints.load(6, CPU)["distiller"]["weight"][0] == 6


class Malicious:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_reading_runs_no_code(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=1)
    checkpoints.save(3, {"distiller": Malicious(tmp_path / "harm")})
    with pytest.raises(DistilError, match="cannot be read"):
        checkpoints.load(3, CPU)
    assert not (tmp_path / "harm").exists()


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(
    teacher_dir: TeacherDir, text_file: Path, tmp_path: Path
) -> None:
    settings = {
        "teacher": {"name": str(teacher_dir("bert", head=False))},
        "student": {"n_layers": 2},
        "corpus": {"train": str(text_file), "block_size": 24, "max_blocks": 40},
        "objectives": {"cosine": {"@distil_objectives": "spacy-distil.Cosine.v1"}},
        "training": {
            "max_steps": 6,
            "batch_size": 4,
            "micro_batch": 4,
            "checkpoint_frequency": 2,
            "keep_checkpoints": 2,
            "remove_checkpoints": False,
            "mixed_precision": "no",
            "tensorboard": False,
        },
    }
    output = tmp_path / "out"
    distil_encoder(settings, output, gpu_id=-1)
    expected = load_file(output / "model.safetensors")
    results = output / "distil.json"
    results.write_text(results.read_text().replace('"finished": true', '"finished": false'))
    (output / "model.safetensors").unlink()

    newest = output / "checkpoints" / "step-00000006.pt"
    newest.write_bytes(newest.read_bytes()[:1000])
    with pytest.raises(DistilError, match=r"step-00000006\.pt cannot be read"):
        distil_encoder(settings, output, gpu_id=-1, resume=True)
    newest.unlink()
    distil_encoder(settings, output, gpu_id=-1, resume=True)
    found = load_file(output / "model.safetensors")
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert names(output / "checkpoints") == ["step-00000004.pt", "step-00000006.pt"]
