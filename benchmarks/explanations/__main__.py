"""Measure whether the tokens that explanations name matter to the pipeline.

    python -m benchmarks.explanations PIPELINE TEST.spacy --output benchmarks/explanations/results

The pipeline has a `textcat` or `textcat_multilabel`. For the class that it predicts, tokens are
ordered by integrated gradients, by occlusion, by attention (of the last layer, averaged over heads
and over the pieces that are pooled), and at random. They are taken out of the document in this
order, and put in: the area under the probability of the class should be small, and large.
Integrated gradients and attention need an encoder on the torch engine.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from spacy.language import Language
from spacy.tokens import Doc
from wasabi import msg

from benchmarks.common.options import Limit, OptionalOutput, Seed, Stem, Test
from benchmarks.common.results import (
    Part,
    print_parts,
    save_files,
    timestamp,
    without_directories,
)
from benchmarks.explanations.attention import Attention
from benchmarks.explanations.curves import SHARES, Curves, draw
from spacy_distil.errors import CorpusError, friendly_errors
from spacy_distil.pipelines import load_pipeline
from spacy_distil.report.bootstrap import interval
from spacy_distil.report.layout import measured_on
from spacy_distil.report.machine import command_line, describe_machine
from spacy_distil.tables import Table
from spacy_distil.text.documents import read_documents
from spacy_distil.trust.explanations.documents import find_encoder, find_visible
from spacy_distil.trust.explanations.explain import explain
from spacy_distil.trust.explanations.explanation import Explanation
from spacy_distil.trust.explanations.occlusion import MOST_TOKENS
from spacy_distil.trust.explanations.targets import find_pipe, read_request

GRADIENTS, OCCLUSION, ATTENTION, RANDOM = (
    "integrated gradients",
    "occlusion",
    "attention",
    "random order",
)
# Orders of each document, whose curves are averaged.
N_RANDOM = 5
# Documents with fewer tokens have no curve to speak of.
FEWEST_TOKENS = 5


def measure(nlp: Language, name: str, docs: list[Doc], *, seed: int) -> dict[str, list[Curves]]:
    """Draw the curves of all documents, by the order of their tokens.

    name: of the text classifier.
    """
    rng = np.random.default_rng(seed)
    encoder = find_encoder(nlp, name)
    attention: Attention | None = None
    if encoder is not None and encoder.settings.engine == "torch":
        attention = Attention(encoder)
    found: dict[str, list[Curves]] = {}
    for i, doc in enumerate(docs):
        if i % 50 == 0:
            msg.text(f"Document {i:,} of {len(docs):,}")
        occlusion = explain(nlp, doc, "cats", "occlusion")
        assert isinstance(occlusion, Explanation)
        values = {OCCLUSION: occlusion.attributions}
        if attention is not None:
            gradients = explain(nlp, doc, "cats", "integrated_gradients")
            assert isinstance(gradients, Explanation)
            values = {GRADIENTS: gradients.attributions, **values, ATTENTION: attention(doc)}
        tokens = np.flatnonzero(find_visible(occlusion.doc, encoder))
        for key, own in values.items():
            order = tokens[np.argsort(-own[tokens], kind="stable")].tolist()
            found.setdefault(key, []).append(draw(nlp, doc, occlusion.target, order))
        curves = [
            draw(nlp, doc, occlusion.target, rng.permutation(tokens).tolist())
            for _ in range(N_RANDOM)
        ]
        mean = Curves(
            np.mean([each.deletion for each in curves], axis=0),
            np.mean([each.insertion for each in curves], axis=0),
        )
        found.setdefault(RANDOM, []).append(mean)
    return found


def make_table(found: Mapping[str, list[Curves]]) -> Table:
    """Make a table with a row for each order, with intervals of 95 % over the documents."""
    areas = {name: np.array([each.areas for each in own]) for name, own in found.items()}
    rows = []
    for name, own in areas.items():
        cells = [name]
        for column in (0, 1):
            cells.append(_cell(own[:, column]))
            gain = (own - areas[RANDOM])[:, column]
            cells.append("" if name == RANDOM else _cell(gain, sign="+"))
        rows.append(cells)
    header = ["tokens ordered by", "deletion", "minus random", "insertion", "minus random"]
    return Table("Area under the probability of the predicted class", header, rows)


def _cell(values: np.ndarray, sign: str = "") -> str:
    """The mean of documents, and its interval."""
    counts: Any = np.stack([values, np.ones(len(values))], axis=1)
    low, high = interval(lambda totals: totals[:, 0] / totals[:, 1], counts)
    return f"{values.mean():{sign}.3f} ({low:{sign}.3f} to {high:{sign}.3f})"


def choose(nlp: Language, docs: list[Doc]) -> list[Doc]:
    """Leave out documents that are too short or too long. Raises CorpusError if none is left."""
    kept = [
        doc
        for doc in docs
        if sum(not token.is_space for token in doc) >= FEWEST_TOKENS and len(doc) <= MOST_TOKENS
    ]
    if not kept:
        raise CorpusError(
            f"No document has {FEWEST_TOKENS} to {MOST_TOKENS:,} tokens. Take other documents."
        )
    return kept


def main(
    pipeline: Annotated[str, typer.Argument(help="Trained pipeline: directory or package")],
    test: Test,
    output: OptionalOutput = None,
    limit: Limit = 0,
    seed: Seed = 0,
    stem: Stem = "explanations",
) -> None:
    """Measure all orders, print the table and save it."""
    date = timestamp()
    with friendly_errors():
        nlp = load_pipeline(pipeline)
        name = find_pipe(nlp, read_request(nlp, "cats"))
        docs = read_documents(test, nlp, limit=limit).docs
        kept = choose(nlp, docs)
        found = measure(nlp, name, kept, seed=seed)
    command = without_directories(command_line())
    about = (
        f"{Path(pipeline).name} on {len(kept):,} of {len(docs):,} documents of {test.name}, with "
        f"{FEWEST_TOKENS} to {MOST_TOKENS:,} tokens. Deletion: lower is better. Insertion: higher "
        "is better. In brackets are intervals of 95 % from a bootstrap over documents. Random: "
        f"{N_RANDOM} orders of each document, seed {seed}."
    )
    parts: list[Part] = [make_table(found), about]
    print_parts(parts)
    if output is None:
        return
    machine = describe_machine()
    data = {
        "pipeline": Path(pipeline).name,
        "test": test.name,
        "n_docs": len(kept),
        "seed": seed,
        "shares": SHARES,
        "curves": {
            name: {
                kind: np.mean([getattr(each, kind) for each in own], axis=0).tolist()
                for kind in ("deletion", "insertion")
            }
            for name, own in found.items()
        },
        "areas": {name: [each.areas for each in own] for name, own in found.items()},
        "command": command,
        "machine": machine,
        "date": date,
    }
    save_files([*parts, f"`{command}`", measured_on(machine, date)], data, output, stem)


if __name__ == "__main__":
    typer.run(main)
