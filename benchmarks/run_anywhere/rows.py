"""What `run_anywhere` has to show: ours against theirs, row by row, and how a row is judged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from spacy_distil.report.layout import with_range
from spacy_distil.report.speed import Spread
from spacy_distil.tables import Table

Kind = Literal["speed", "latency", "cold start", "memory"]


@dataclass(frozen=True)
class Condition:
    """threads: of each process. pin_cores: cores that it is confined to; `None` for all."""

    title: str
    threads: int
    pin_cores: int | None


TWO_THREADS = Condition("2 threads", 2, None)
ONE_CORE = Condition("1 core", 1, 1)


@dataclass(frozen=True)
class Row:
    """One claim.

    key: how `--rows` names it.
    what, against: in words.
    kind: what is measured: words/s of documents, p50 of single sentences, seconds from process
        start to the first doc, or peak memory by then.
    ours, theirs: names of `Pipelines`.
    target: least ratio in favour of ours.
    conditions: under which it is measured.
    group: rows of one group are measured in the same rounds.
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
    Row(
        key="encoder-torch",
        what="encoder, torch fp32",
        against="spacy-transformers",
        kind="speed",
        ours="encoder",
        theirs="encoder-theirs",
        target=2.2,
    ),
    Row(
        key="encoder-int8",
        what="encoder, ONNX int8",
        against="spacy-transformers",
        kind="speed",
        ours="encoder-int8",
        theirs="encoder-theirs",
        target=3.8,
    ),
    Row(
        key="heads-int8",
        what="encoder + tagger + ner + textcat, ONNX int8",
        against="the same heads on spacy-transformers",
        kind="speed",
        ours="heads-int8",
        theirs="heads-theirs",
        target=3.1,
    ),
    Row(
        key="distil-ner-int8",
        what="the same with distil_ner",
        against="spacy-transformers with ner",
        kind="speed",
        ours="distil-ner-int8",
        theirs="heads-theirs",
        target=3.5,
    ),
    Row(
        key="latency",
        what="one 20-word sentence, p50, with tagger + ner + textcat, ONNX int8",
        against="spacy-transformers",
        kind="latency",
        ours="heads-int8",
        theirs="heads-theirs",
        target=3.5,
    ),
    Row(
        key="cold-start",
        what="cold start, light install",
        against="spacy-transformers",
        kind="cold start",
        ours="heads-int8",
        theirs="heads-theirs",
        target=5,
        conditions=(TWO_THREADS,),
    ),
    Row(
        key="memory",
        what="peak memory after the first doc, light install",
        against="spacy-transformers",
        kind="memory",
        ours="heads-int8",
        theirs="heads-theirs",
        target=3,
        conditions=(TWO_THREADS,),
    ),
    Row(
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
    Row(
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
class Result:
    """A row under one condition.

    ours, theirs: words/s, or seconds, or bytes, over the rounds.
    ratio: how much better ours is, round by round.
    """

    row: Row
    condition: Condition
    ours: Spread
    theirs: Spread
    ratio: Spread

    @property
    def met(self) -> bool:
        """Whether the median of the rounds reaches the target."""
        return self.ratio.median >= self.row.target


def judge(row: Row, condition: Condition, ours: Sequence[float], theirs: Sequence[float]) -> Result:
    """A result from what was measured in each round, the same rounds of both."""
    more_is_better = row.kind == "speed"
    ratios = [
        mine / other if more_is_better else other / mine
        for mine, other in zip(ours, theirs, strict=True)
    ]
    return Result(row, condition, Spread.of(ours), Spread.of(theirs), Spread.of(ratios))


UNITS: dict[Kind, tuple[str, float, str]] = {
    "speed": ("{:,.0f}", 1, "words/s"),
    "latency": ("{:,.1f}", 1e3, "ms"),
    "cold start": ("{:,.2f}", 1, "s"),
    "memory": ("{:,.0f}", 1e-6, "MB"),
}


def make_table(results: Sequence[Result]) -> Table:
    """All results, in the order of the rows."""
    rows = []
    for result in results:
        form, factor, unit = UNITS[result.row.kind]
        rows.append(
            [
                result.row.what,
                result.row.against,
                result.condition.title,
                *(
                    f"{with_range(scale(spread, factor), form)} {unit}"
                    for spread in (result.ours, result.theirs)
                ),
                with_range(result.ratio, "{:.2f}"),
                f"{result.row.target:g}",
                "yes" if result.met else "no",
            ]
        )
    return Table(
        title="Side by side",
        header=["what", "against", "on", "ours", "theirs", "ratio", "at least", "met"],
        rows=rows,
    )


def scale(spread: Spread, factor: float) -> Spread:
    return Spread(spread.median * factor, spread.min * factor, spread.max * factor)
