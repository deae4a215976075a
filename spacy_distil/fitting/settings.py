"""The section [fit] of a config: the budget, and which students are tried."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from spacy_distil.runs.settings import Count, Section

SECTION = "fit"

Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(gt=0, le=1)]


class FitSettings(Section):
    """The budget of the student, and the students to try.

    words_per_second: fewest spaCy tokens per second through `nlp.pipe`.
    latency_ms: longest time of `nlp(text)`, in milliseconds, at the percentile.
    percentile: of the texts: 50 or 95.
    size_mb, memory_mb: largest size on disk, and peak resident memory, in millions of bytes.
    min_retention: lowest score, as a share of the teacher's. The student is then the one with the
        lowest cost that reaches it.
    minimize: the cost, with `min_retention`.
    cores: CPU cores that the student runs on.
    family: train all of the best trade-offs to the end, and keep them in one pipeline.
    texts: documents to time on; None for the development documents.
    words: most tokens of them.
    batch_size: documents in a batch of `nlp.pipe`.
    layers: numbers of layers of the students that are tried. None chooses them, as below.
    width, ffn: shares of the teacher's width, and of its feed-forward neurons for each dimension.
    embedding_size: widths of factorized embeddings; None among them keeps them whole.
    share_layers: whether all layers have the weights of one.
    pieces: sizes of the vocabulary; None among them for all pieces.
    embedding_bits: of the quantized students.
    cnn: widths of students with spaCy's CNN instead of an encoder.
    most: students that are trained at first: the largest that fit.
    rungs: shares of the steps after which some of them are dropped.
    keep: share of the students that goes on.
    """

    words_per_second: Positive | None = None
    latency_ms: Positive | None = None
    percentile: Literal[50, 95] = 50
    size_mb: Positive | None = None
    memory_mb: Positive | None = None
    min_retention: Annotated[float, Field(gt=0, le=2)] | None = None
    minimize: Literal["words_per_second", "latency_ms", "size_mb", "memory_mb"] = "words_per_second"
    cores: Count = 1
    family: bool = False
    texts: str | None = None
    words: Count = 20_000
    batch_size: Count = 64
    layers: list[Count] | None = None
    width: list[Share] | None = None
    ffn: list[Share] | None = None
    embedding_size: list[Count | None] | None = None
    share_layers: list[bool] | None = None
    pieces: list[Count | None] | None = None
    embedding_bits: list[Literal[8, 4]] | None = None
    cnn: list[Count] | None = None
    most: Count = 8
    rungs: list[Share] = Field(default_factory=lambda: [0.25, 0.5])
    keep: Share = 0.5

    @field_validator("rungs")
    @classmethod
    def _check_rungs(cls, rungs: list[float]) -> list[float]:
        if sorted(rungs) != rungs:
            raise ValueError("expected ascending shares")
        return rungs

    @property
    def counts_size(self) -> bool:
        """Whether the size on disk matters."""
        return self.size_mb is not None or self.minimize == "size_mb"

    @property
    def limits(self) -> dict[str, float]:
        """The limits of costs that are set, by name."""
        names = ("words_per_second", "latency_ms", "size_mb", "memory_mb")
        return {name: value for name in names if (value := getattr(self, name)) is not None}
