"""The agreement of two pipelines as Markdown, and as text for the terminal."""

from __future__ import annotations

from spacy_distil.export.agreement import Agreement
from spacy_distil.report.layout import (
    MISSING,
    TIMES,
    join_markdown,
    join_text,
    percent_rounded_down,
)
from spacy_distil.tables import Table, megabytes_cell


def to_text(agreement: Agreement) -> str:
    """Write all tables for the terminal."""
    return join_text(make_tables(agreement), describe(agreement))


def to_markdown(agreement: Agreement) -> str:
    """Write all tables as Markdown."""
    return join_markdown(make_tables(agreement), describe(agreement))


def make_tables(agreement: Agreement) -> list[Table]:
    """Make the tables of pipes, token vectors, scores, and speed and size, without empty ones."""
    tables = [
        _pipes_table(agreement),
        _vectors_table(agreement),
        _scores_table(agreement),
        _speed_table(agreement),
    ]
    return [table for table in tables if table.rows and len(table.header) > 1]


def describe(agreement: Agreement) -> str:
    """Describe the measurement in a footnote."""
    text = (
        f"{agreement.n_docs:,} documents, {agreement.n_words:,} spaCy tokens. Agreement in %: for "
        "tokens and docs the share on which both agree, for spans F; rounded down. In batches of "
        f"{agreement.batch_size} documents; alone: a pipeline's predictions for one document at a "
        "time against its own in batches."
    )
    if agreement.speeds is not None:
        text += (
            f" Words/s: median of {len(agreement.speeds[0].passes)} rounds in turns, in this "
            "process, without tokenization: for orientation."
        )
    if agreement.not_compared:
        text += f" Not compared: {', '.join(agreement.not_compared)}."
    return text


def _pipes_table(agreement: Agreement) -> Table:
    alone = any(measure.original_alone is not None for measure in agreement.measures)
    header = ["pipe", "annotation", "agreement, %"]
    header += ["candidate alone", "original alone"] if alone else []
    header += ["of", "max score difference"]
    rows = []
    for measure in agreement.measures:
        cells = [measure.pipe, measure.annotation, percent_rounded_down(measure.agreement)]
        if alone:
            cells += [
                percent_rounded_down(measure.candidate_alone),
                percent_rounded_down(measure.original_alone),
            ]
        difference = measure.max_difference
        cells.append(f"{measure.n:,} {measure.unit}")
        cells.append(MISSING if difference is None else f"{difference:.4f}")
        rows.append(cells)
    if all(measure.max_difference is None for measure in agreement.measures):
        header, rows = header[:-1], [cells[:-1] for cells in rows]
    return Table("Agreement of the candidate with the original", header, rows)


def _vectors_table(agreement: Agreement) -> Table:
    differences = (
        ("candidate and original", agreement.vectors),
        ("candidate alone and in batches", agreement.candidate_vectors_alone),
        ("original alone and in batches", agreement.original_vectors_alone),
    )
    return Table(
        title="Token vectors",
        header=["of", "max difference", "mean difference", "mean cosine"],
        rows=[
            [name, f"{vectors.max:.2g}", f"{vectors.mean:.2g}", f"{vectors.cosine:.6f}"]
            for name, vectors in differences
            if vectors is not None
        ],
    )


def _scores_table(agreement: Agreement) -> Table:
    scores = {"original": agreement.original_scores, "candidate": agreement.candidate_scores}
    return Table(
        title="Scores against gold, %",
        header=["pipeline", *agreement.headline],
        rows=[
            [name, *(f"{own[key] * 100:.2f}" for key in agreement.headline)]
            for name, own in scores.items()
        ],
    )


def _speed_table(agreement: Agreement) -> Table:
    header, columns = ["pipeline"], []
    if agreement.speeds is not None:
        rates = [s.words_per_second(agreement.batch_size).median for s in agreement.speeds]
        header += ["words/s", f"{TIMES} original"]
        columns += [[f"{rate:,.0f}" for rate in rates], [f"{r / rates[0]:.2f}" for r in rates]]
    if agreement.original_bytes is not None and agreement.candidate_bytes is not None:
        header.append("MB on disk")
        sizes = (agreement.original_bytes, agreement.candidate_bytes)
        columns.append([megabytes_cell(size) for size in sizes])
    names = ["original", "candidate"]
    return Table("Speed and size", header, [list(row) for row in zip(names, *columns, strict=True)])
