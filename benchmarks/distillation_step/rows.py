"""What `distil` compares: ways to go through the same text, shape of the models, size of a step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["cpu", "gpu"]
PositionsTaught = Literal["masked", "all"]

OURS, PLAIN = "spacy-distil", "plain loop"


@dataclass(frozen=True)
class Row:
    """One way to go through the text.

    key: how `--rows` names it.
    is_ours: whether it is a step of ours, and not of the plain loop.
    compiled: of ours: whether torch.compile makes kernels of both encoders.
    positions: where soft targets are learned: at masked pieces, or at all.
    by_length: of the plain loop: whether rows of about the same length make a batch, as the
        published script has it by default.
    dropout: of the student.
    onednn: whether the plain loop's linear layers are oneDNN's where ours are.
    """

    key: str
    title: str
    is_ours: bool = False
    compiled: bool = False
    positions: PositionsTaught = "all"
    by_length: bool = False
    dropout: float = 0.0
    onednn: bool = False


ROWS = (
    Row("ours", OURS, is_ours=True, positions="masked"),
    Row("compiled", f"{OURS}, compiled", is_ours=True, compiled=True, positions="masked"),
    Row("all", f"{OURS}, soft targets at all pieces", is_ours=True),
    Row("plain", PLAIN, by_length=True),
    Row("masked", f"{PLAIN}, soft targets at masked", positions="masked", by_length=True),
    Row("ungrouped", f"{PLAIN}, rows in random order"),
    Row("dropout", f"{PLAIN}, dropout 0.1", by_length=True, dropout=0.1),
    Row("onednn", f"{PLAIN}, linear layers as ours", by_length=True, onednn=True),
)
DEFAULT_ROWS = "ours,plain,masked,ungrouped"


@dataclass(frozen=True)
class Size:
    """blocks: in one forward pass. accumulate: forward passes in an optimizer step. steps: of a
    round.
    """

    blocks: int
    accumulate: int
    steps: int


SIZES: dict[Kind, Size] = {"cpu": Size(4, 2, 2), "gpu": Size(64, 1, 20)}


@dataclass(frozen=True)
class Shape:
    """layers: of teacher and student. width: of both. length: pieces in a block at most."""

    teacher_layers: int
    layers: int
    width: int
    length: int
