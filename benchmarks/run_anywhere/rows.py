"""The rows of the benchmark: what is compared, and the ratio that each row must reach."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from benchmarks.common.cells import ratio, scaled, verdict
from spacy_distil.report.layout import with_range
from spacy_distil.report.speed import Spread
from spacy_distil.tables import Table

Kind = Literal["speed", "latency", "cold start", "memory"]


@dataclass(frozen=True)
class Condition:
    """How the processes run.

    title: for the table.
    threads: number of threads of each process.
    pin_cores: number of cores that a process may use; `None` for all.
    """

    title: str
    threads: int
    pin_cores: int | None


TWO_THREADS = Condition("2 threads", 2, None)
ONE_CORE = Condition("1 core", 1, 1)


@dataclass(frozen=True)
class RivalRow:
    """A pipeline of ours against a rival.

    key: its name in `--rows`.
    what, against: both pipelines in words, for the table.
    kind: words/s of documents, median latency of single sentences, seconds from process start to
        the first doc, or peak memory after the first doc.
    ours, theirs: names of the pipelines, see `Pipelines`.
    target: smallest acceptable ratio in favour of ours.
    conditions: the row is measured under each of them.
    group: rows of the same group are measured in the same rounds.
    """

    key: str
    what: str
    against: str
    kind: Kind
    ours: str
    theirs: str
    target: float
    conditions: Sequence[Condition] = (TWO_THREADS, ONE_CORE)
    group: str = "6 layers"


ROWS = (
    RivalRow(
        key="encoder-torch",
        what="encoder, torch fp32",
        against="spacy-transformers",
        kind="speed",
        ours="encoder",
        theirs="encoder-theirs",
        target=2.2,
    ),
    RivalRow(
        key="encoder-int8",
        what="encoder, ONNX int8",
        against="spacy-transformers",
        kind="speed",
        ours="encoder-int8",
        theirs="encoder-theirs",
        target=3.8,
    ),
    RivalRow(
        key="heads-int8",
        what="encoder + tagger + ner + textcat, ONNX int8",
        against="the same heads on spacy-transformers",
        kind="speed",
        ours="heads-int8",
        theirs="heads-theirs",
        target=3.1,
    ),
    RivalRow(
        key="distil-ner-int8",
        what="the same with distil_ner",
        against="spacy-transformers with ner",
        kind="speed",
        ours="distil-ner-int8",
        theirs="heads-theirs",
        target=3.5,
    ),
    RivalRow(
        key="latency",
        what="one 20-word sentence, p50, with tagger + ner + textcat, ONNX int8",
        against="spacy-transformers",
        kind="latency",
        ours="heads-int8",
        theirs="heads-theirs",
        target=3.5,
    ),
    RivalRow(
        key="cold-start",
        what="cold start, light install",
        against="spacy-transformers",
        kind="cold start",
        ours="heads-int8",
        theirs="heads-theirs",
        target=5,
        conditions=(TWO_THREADS,),
    ),
    RivalRow(
        key="memory",
        what="peak memory after the first doc, light install",
        against="spacy-transformers",
        kind="memory",
        ours="heads-int8",
        theirs="heads-theirs",
        target=3,
        conditions=(TWO_THREADS,),
    ),
    RivalRow(
        key="cnn",
        what="3-layer student, tagger + distil_ner + textcat, ONNX int8",
        against="spaCy CNN pipeline",
        kind="speed",
        ours="student-int8",
        theirs="cnn",
        target=0.42,
        conditions=(ONE_CORE,),
        group="3 layers",
    ),
    RivalRow(
        key="bert-base",
        what="encoder of BERT-base shape, ONNX int8",
        against="spacy-transformers",
        kind="speed",
        ours="bert-base-int8",
        theirs="bert-base-theirs",
        target=4,
        group="BERT-base",
    ),
)


@dataclass(frozen=True)
class RowResult:
    """The measurements of a row under one condition.

    ours, theirs: words/s, seconds or bytes, over the rounds.
    ratio: how much better ours is, round by round.
    """

    row: RivalRow
    condition: Condition
    ours: Spread
    theirs: Spread
    ratio: Spread

    @property
    def met(self) -> bool:
        """Whether the median ratio reaches the target."""
        return self.ratio.median >= self.row.target


def judge(
    row: RivalRow, condition: Condition, ours: Sequence[float], theirs: Sequence[float]
) -> RowResult:
    """Compare the measurements of both sides, one number per round."""
    more_is_better = row.kind == "speed"
    ratios = [
        mine / other if more_is_better else other / mine
        for mine, other in zip(ours, theirs, strict=True)
    ]
    return RowResult(row, condition, Spread.of(ours), Spread.of(theirs), Spread.of(ratios))


UNITS: dict[Kind, tuple[str, float, str]] = {
    "speed": ("{:,.0f}", 1, "words/s"),
    "latency": ("{:,.1f}", 1e3, "ms"),
    "cold start": ("{:,.2f}", 1, "s"),
    "memory": ("{:,.0f}", 1e-6, "MB"),
}


def make_table(results: Sequence[RowResult]) -> Table:
    """Make the table, one line per result."""
    rows = []
    for result in results:
        form, factor, unit = UNITS[result.row.kind]
        rows.append(
            [
                result.row.what,
                result.row.against,
                result.condition.title,
                *(
                    f"{with_range(scaled(spread, factor), form)} {unit}"
                    for spread in (result.ours, result.theirs)
                ),
                ratio(result.ratio),
                f"{result.row.target:g}",
                verdict(result.met),
            ]
        )
    return Table(
        title="Side by side",
        header=["what", "against", "on", "ours", "theirs", "ratio", "at least", "met"],
        rows=rows,
    )
