"""The rows of the benchmark, the shape of the models and the size of a step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Device = Literal["cpu", "gpu"]
Positions = Literal["masked", "all"]

OURS, PLAIN = "spacy-distil", "plain loop"


@dataclass(frozen=True)
class StepRow:
    """One way to process the text.

    key: its name in `--rows`.
    is_ours: whether ours takes the steps, or the plain loop.
    compiled: whether torch.compile compiles both encoders (ours only).
    positions: the pieces at which the student learns soft targets.
    by_length: whether a batch has rows of similar length, the default of the published script
        (plain loop only).
    dropout: of the student.
    onednn: whether the plain loop uses oneDNN for linear layers whenever ours does.
    """

    key: str
    title: str
    is_ours: bool = False
    compiled: bool = False
    positions: Positions = "all"
    by_length: bool = False
    dropout: float = 0.0
    onednn: bool = False


ROWS = (
    StepRow("ours", OURS, is_ours=True, positions="masked"),
    StepRow("compiled", f"{OURS}, compiled", is_ours=True, compiled=True, positions="masked"),
    StepRow("all", f"{OURS}, soft targets at all pieces", is_ours=True),
    StepRow("plain", PLAIN, by_length=True),
    StepRow("masked", f"{PLAIN}, soft targets at masked", positions="masked", by_length=True),
    StepRow("ungrouped", f"{PLAIN}, rows in random order"),
    StepRow("dropout", f"{PLAIN}, dropout 0.1", by_length=True, dropout=0.1),
    StepRow("onednn", f"{PLAIN}, linear layers as ours", by_length=True, onednn=True),
)
DEFAULT_ROWS = "ours,plain,masked,ungrouped"


@dataclass(frozen=True)
class Size:
    """The size of a round.

    blocks: number of blocks (of the plain loop: rows) per forward pass.
    accumulate: number of forward passes per optimizer step.
    steps: number of optimizer steps per round.
    """

    blocks: int
    accumulate: int
    steps: int


SIZES: dict[Device, Size] = {"cpu": Size(4, 2, 2), "gpu": Size(64, 1, 20)}


@dataclass(frozen=True)
class Shape:
    """The shape of the models.

    teacher_layers, layers: number of layers of teacher and student.
    width: hidden size of both.
    length: maximum number of pieces in a sequence.
    """

    teacher_layers: int
    layers: int
    width: int
    length: int
