"""SIGTERM is noted and does not end the process; a run ends after its current step."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from spacy_distil.distillation import distil_encoder
from spacy_distil.distillation.encoder.objectives import Cosine, Loss, Outputs, distil_objectives
from spacy_distil.errors import DistilError
from spacy_distil.runs.interruption import Interruption, RunInterrupted
from tests import tiny_runs
from tests.children import digests, run, run_and_kill
from tests.kills import Counting

TeacherDir = Callable[..., Path]


@pytest.fixture
def noted() -> Iterator[list[int]]:
    """Signals that reached the handler of the process, which replaces its default action."""
    signals: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: signals.append(number))
    yield signals
    signal.signal(signal.SIGTERM, before)


def test_it_is_noted_only_in_the_context(noted: list[int]) -> None:
    handler = signal.getsignal(signal.SIGTERM)
    with Interruption() as interruption:
        assert not interruption.received
        os.kill(os.getpid(), signal.SIGTERM)
        assert interruption.received
        os.kill(os.getpid(), signal.SIGTERM)  # a second signal changes nothing
        assert noted == []
    assert signal.getsignal(signal.SIGTERM) is handler
    os.kill(os.getpid(), signal.SIGTERM)
    assert noted == [signal.SIGTERM]


def test_the_handler_is_restored_after_an_error(noted: list[int]) -> None:
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ValueError, match="diverged"), Interruption():
        raise ValueError("diverged")
    assert signal.getsignal(signal.SIGTERM) is handler


# Whole runs


class Terminated(Cosine):
    """The cosine, which sends a signal in one step."""

    def __init__(self, at: int, signal: int) -> None:
        super().__init__(1.0)
        self.at, self.signal = at, signal

    def forward(self, outputs: Outputs) -> Loss:
        if self.training and outputs.step + 1 == self.at:
            os.kill(os.getpid(), self.signal)
        return super().forward(outputs)


@pytest.fixture
def config(teacher_dir: TeacherDir, text_file: Path) -> Callable[..., dict[str, Any]]:
    """Makes the config of a run of 6 steps. A signal comes in step `at`, or never if it is 0."""
    if "tests.TerminatedInStep.v1" not in distil_objectives:
        distil_objectives.register("tests.TerminatedInStep.v1", func=Terminated)

    def make(at: int, number: int = signal.SIGTERM) -> dict[str, Any]:
        return {
            "teacher": {"name": str(teacher_dir("bert", head=False))},
            "student": {"n_layers": 2},
            "corpus": {
                "train": str(text_file),
                "block_size": 24,
                "max_blocks": 40,
                "dev_fraction": 0.1,
            },
            "objectives": {
                "cosine": {
                    "@distil_objectives": "tests.TerminatedInStep.v1",
                    "at": at,
                    "signal": int(number),
                }
            },
            "training": {
                "max_steps": 6,
                "batch_size": 4,
                "micro_batch": 2,
                "log_frequency": 4,
                "mixed_precision": "no",
                "tensorboard": False,
            },
        }

    return make


def results(output: Path) -> dict[str, Any]:
    return json.loads((output / "distil.json").read_text())


def test_a_run_ends_after_its_current_step(
    config: Callable[..., dict[str, Any]], tmp_path: Path, noted: list[int]
) -> None:
    output = tmp_path / "out"
    with pytest.raises(
        RunInterrupted, match=r"after step 3 of 6, and saved a checkpoint.*--resume"
    ):
        distil_encoder(config(3), output, gpu_id=-1)
    assert issubclass(RunInterrupted, DistilError)
    assert [path.name for path in (output / "checkpoints").iterdir()] == ["step-00000003.pt"]
    assert not results(output)["finished"]
    assert not noted
    # The resumed run does not take step 3, which sends SIGTERM.
    assert distil_encoder(config(3), output, gpu_id=-1, resume=True).steps == 6
    assert results(output)["finished"]


def test_ctrl_c_tells_how_to_go_on(
    config: Callable[..., dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = config(3, signal.SIGINT)
    settings["training"]["checkpoint_frequency"] = 2
    # A shell lets its background jobs ignore Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            distil_encoder(settings, tmp_path / "out", gpu_id=-1)
    finally:
        signal.signal(signal.SIGINT, before)
    told = " ".join(capsys.readouterr().out.split())
    assert "Stopped at step 3 by Ctrl-C. Go on from step 2, the newest checkpoint, with" in told


def test_in_the_last_step_the_run_finishes_first(
    config: Callable[..., dict[str, Any]], tmp_path: Path, noted: list[int]
) -> None:
    result = distil_encoder(config(6), tmp_path / "out", gpu_id=-1)
    assert result.steps == 6
    assert results(result.path)["finished"]
    assert "cosine" in result.scores
    assert load_file(result.path / "model.safetensors")
    assert not noted


def test_a_run_in_another_thread_leaves_signals_alone(
    config: Callable[..., dict[str, Any]], tmp_path: Path, noted: list[int]
) -> None:
    """Python lets only the main thread handle them."""
    found: list[Any] = []

    def run() -> None:
        torch.set_num_threads(1)
        try:
            found.append(distil_encoder(config(3), tmp_path / "out", gpu_id=-1).steps)
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [6]
    assert set(noted) == {signal.SIGTERM}


@pytest.mark.slow
def test_a_kill_while_a_run_is_replaced(tmp_path: Path) -> None:
    """Before the new one begins, the old one stays; after that, the new one can be resumed."""
    output = tmp_path / "out"
    run((tiny_runs.prepare_encoder, (tmp_path,)))
    run((tiny_runs.run_encoder, (tmp_path, output, {})))
    before = digests(output)
    changed: dict[str, Any] = {"training": {"seed": 5}}
    other = (tiny_runs.run_encoder, (tmp_path, output, changed | {"force": True}))
    assert run_and_kill(other, Counting(output, only="distil.json", kill_at=1)) is None
    assert digests(output) == before
    run((tiny_runs.run_encoder, (tmp_path, output, {"resume": True})))
    assert digests(output) == before

    assert run_and_kill(other, Counting(output, first="distil.json", kill_at=2)) is None
    assert not (output / "distil.json").exists()
    again = changed | {"resume": True}
    run((tiny_runs.run_encoder, (tmp_path, output, again)))
    run((tiny_runs.run_encoder, (tmp_path, tmp_path / "whole", changed)))
    names = ("model.safetensors", "distil.cfg", "SHA256SUMS")
    found, expected = digests(output), digests(tmp_path / "whole")
    assert {name: found[name] for name in names} == {name: expected[name] for name in names}
    assert found["model.safetensors"] != before["model.safetensors"]
