"""The log and the display of a run."""

from __future__ import annotations

import io
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from spacy_distil.distillation.encoder import progress
from spacy_distil.distillation.encoder.progress import Display, RunLog
from spacy_distil.errors import DistilError


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a full disk: /dev/full")
def test_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "log.jsonl")
    log.write(1, "train", {"loss": 2.0})
    assert log.forget_after(1) == {}
    log.path.unlink()
    log.path.symlink_to("/dev/full")
    with pytest.raises(DistilError, match=r"log\.jsonl cannot be written: No space"):
        log.write(2, "train", {"loss": 1.0})


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def show(monkeypatch: pytest.MonkeyPatch, *, shown: bool = True) -> None:
    """Show the losses of step 30 of a run that began at step 10, a minute ago."""
    clock = iter([100.0, 160.0])
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    display = Display(["cosine"], total=2410, start=10, shown=shown)
    means = {"cosine": 0.1234, "total": 0.5}
    display.losses(30, means, speed=12345.6, learn_rate=4.567e-4)
    display.close()


def test_without_a_terminal_each_log_step_is_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """20 steps took a minute, so 2,380 steps take 119 of them."""
    show(monkeypatch)
    *_, line = capsys.readouterr().out.splitlines()
    assert line == (
        "Step 30 of 2410: cosine 0.123 total 0.500, 12,346 pieces/s, learn rate 0.00046, "
        "1:59:00 left"
    )


def test_on_a_terminal_the_bar_shows_the_losses(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    show(monkeypatch)
    assert "Step 30" not in capsys.readouterr().out
    assert re.search(r"10/2410 .*cosine 0.123 total 0.500, 12,346 pieces/s", terminal.getvalue())


def test_other_processes_show_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    show(monkeypatch, shown=False)
    assert capsys.readouterr() == ("", "")


def test_resuming_finds_the_scores_of_earlier_steps(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "log.jsonl")
    for step in (0, 10, 20):
        log.write(step, "train", {"cosine": 1.0})
        log.write(step, "held_out", {"cosine": step / 10, "total": 2.0})
    assert log.forget_after(10) == {
        0: {"cosine": 0.0, "total": 2.0},
        10: {"cosine": 1.0, "total": 2.0},
    }
    assert len(log.path.read_text().splitlines()) == 4
