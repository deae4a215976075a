"""Score pipelines on the tokens of test sets, with intervals.

    python -m benchmarks.languages.scores --tags "UPOS=de_pos_test.spacy" [...] \\
        --entities "NER F=de_ner_test.spacy" [...] --pipeline NAME=DIR [...] --output DIR

The pipelines get the tokens of the annotation, so tokenizers of different languages do not matter.
--tags scores UPOS, --entities entities. In brackets is the share of the first pipeline's score,
with an interval of 95 % from a paired bootstrap over the documents.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from spacy.tokens import Doc
from spacy.training import Example
from wasabi import msg

from benchmarks.common.options import Output, Stem
from benchmarks.common.results import report_results, timestamp
from benchmarks.pipeline_distillation.accuracy import group
from spacy_distil.errors import friendly_errors
from spacy_distil.pipelines import count_bytes, load_pipeline
from spacy_distil.report.bootstrap import Counts, paired_interval
from spacy_distil.report.scores import count_documents, f_score
from spacy_distil.tables import Table
from spacy_distil.text.documents import read_examples


def count(path: str, tests: Mapping[str, tuple[str, Path]]) -> dict[str, Counts]:
    """Count true positives, false positives and false negatives.

    tests: "pos" or "ents", and the documents, by name.
    RETURNS: (n_docs, 3) by name.
    """
    nlp = load_pipeline(path)
    counts = {}
    for name, (kind, test) in tests.items():
        examples = read_examples(nlp, test)
        docs = [
            Doc(
                nlp.vocab,
                [token.text for token in example.reference],
                [bool(token.whitespace_) for token in example.reference],
            )
            for example in examples
        ]
        pairs = [
            Example(predicted, example.reference)
            for predicted, example in zip(nlp.pipe(docs), examples, strict=True)
        ]
        counts[name] = count_documents(pairs, None)[kind]
    return counts


def cell(counts: Counts, reference: Counts) -> str:
    """A score, and its share of a reference's with an interval."""
    score, other = (float(f_score(each.sum(axis=0).astype(float))) for each in (counts, reference))
    if counts is reference:
        return f"{100 * score:.2f}"
    low, high = paired_interval(f_score, counts, reference, combine=np.divide)
    share = score / max(other, 1e-9)
    return f"{100 * score:.2f} ({100 * share:.1f} %, {100 * low:.1f} to {100 * high:.1f})"


def main(
    pipeline: Annotated[
        list[str], typer.Option(metavar="NAME=DIR", help="A pipeline; the first is the reference")
    ],
    output: Output,
    tags: Annotated[
        list[str] | None, typer.Option(metavar="NAME=TEST.spacy", help="Documents to score UPOS on")
    ] = None,
    entities: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=TEST.spacy", help="Documents to score entities on"),
    ] = None,
    stem: Stem = "scores",
) -> None:
    """Score pipelines, print the table and save it."""
    date = timestamp()
    with friendly_errors():
        tests = {
            name.strip(): (kind, Path(path.strip()))
            for kind, values in (("pos", tags), ("ents", entities))
            for name, _, path in (each.partition("=") for each in values or ())
        }
        counts, sizes = {}, {}
        for name, (path, *_) in group(pipeline).items():
            msg.text(f"Scoring {path}")
            counts[name] = count(path, tests)
            sizes[name] = count_bytes(Path(path))
        reference = next(iter(counts.values()))
        rows = [
            [name, f"{sizes[name] / 1e6:.1f}", *(cell(own[t], reference[t]) for t in tests)]
            for name, own in counts.items()
        ]
        table = Table("Scores on gold tokens", ["", "MB", *tests], rows)
        data = {
            name: {
                "bytes": sizes[name],
                "totals": {t: own[t].sum(axis=0).tolist() for t in tests},
            }
            for name, own in counts.items()
        }
    report_results([table], {"pipelines": data}, output=output, stem=stem, date=date)


if __name__ == "__main__":
    typer.run(main)
