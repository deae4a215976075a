"""The results of quantizing as text for the terminal."""

from __future__ import annotations

from spacy_distil.export import agreement_table
from spacy_distil.export.quantize import Quantization
from spacy_distil.report.layout import MISSING, join_text
from spacy_distil.tables import Table


def to_text(result: Quantization) -> str:
    """Write all tables for the terminal."""
    return join_text(
        make_tables(result),
        agreement_table.to_text(result.agreement),
        describe(result),
    )


def make_tables(result: Quantization) -> list[Table]:
    """Make the tables of layers and of the vocabulary, without empty ones."""
    return [t for t in (_sensitivity_table(result), _pruning_table(result)) if t.rows]


def describe(result: Quantization) -> str:
    """Name the pipelines, the documents and the CPU in a footnote."""
    vnni = {True: ", with VNNI", False: ", without VNNI", None: ""}[result.vnni]
    return f"Original and {result.precision} candidate on {result.documents}; {result.cpu}{vnni}."


def _sensitivity_table(result: Quantization) -> Table:
    return Table(
        title="Error of the token vectors with one layer in int8",
        header=["encoder", "layer", "relative error", "in the result"],
        rows=[
            [name, str(i), f"{error:.1e}", "fp32" if i in result.fp32_layers[name] else "int8"]
            for name, errors in result.sensitivity.items()
            for i, error in enumerate(errors)
        ],
    )


def _pruning_table(result: Quantization) -> Table:
    rows = []
    if result.pruning is not None:
        loss = result.pruning.loss
        rows = [
            ["before", f"{result.pruning.n_before:,}", f"{loss.pieces_before:.3f}"],
            ["after", f"{result.pruning.n_after:,}", f"{loss.pieces_after:.3f}"],
        ]
        rows[0] += [f"{loss.unknown_before:.2%}", MISSING]
        rows[1] += [f"{loss.unknown_after:.2%}", f"{loss.changed:.2%}"]
    header = ["vocabulary", "pieces", "pieces per word", "unknown words", "words changed"]
    return Table("Pruned vocabulary", header, rows)
