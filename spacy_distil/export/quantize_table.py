"""What quantizing did, in words and tables."""

from __future__ import annotations

from spacy_distil.export import agreement
from spacy_distil.export.quantize import Quantization
from spacy_distil.tables import Table


def to_text(result: Quantization) -> str:
    """For the terminal."""
    tables = [_sensitivity_table(result), _pruning_table(result)]
    parts = [table.to_text() for table in tables if table.rows]
    return "\n".join([*parts, agreement.to_text(result.agreement), describe(result)])


def describe(result: Quantization) -> str:
    """What the numbers are of."""
    vnni = {True: ", with VNNI", False: ", without VNNI", None: ""}[result.vnni]
    return f"Original and {result.precision} candidate on {result.documents}; {result.cpu}{vnni}."


def _sensitivity_table(result: Quantization) -> Table:
    return Table(
        title="Error of the token vectors with one layer in int8",
        header=["encoder", "layer", "relative error", "in the result"],
        rows=[
            [place, str(i), f"{error:.1e}", "fp32" if i in result.fp32_layers[place] else "int8"]
            for place, errors in result.sensitivity.items()
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
        rows[0] += [f"{loss.unknown_before:.2%}", "\N{EN DASH}"]
        rows[1] += [f"{loss.unknown_after:.2%}", f"{loss.changed:.2%}"]
    header = ["vocabulary", "pieces", "pieces per word", "unknown words", "words changed"]
    return Table("Pruned vocabulary", header, rows)
