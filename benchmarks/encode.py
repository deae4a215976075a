"""Words per second of an encoder with one light head: ours, by window, and spacy-transformers.

    python -m benchmarks.encode DOCS.spacy ENCODER [--window 192 --window 0] [--limit 100]

The same weights, tagger and documents throughout; rounds that take turns; the median of them.
`predict` is `nlp.pipe` over tokenized docs, `train` is `nlp.update` on batches of about 1,000 words
with an optimizer step each, in float32 and, where the CPU has it, in bfloat16. spacy-transformers
(`pip install 'spacy-distil[interop]'`) has its stock settings, windows of 128 tokens with a stride
of 96, and is left out where it is not installed.
"""

from __future__ import annotations

import importlib.util
import itertools
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import spacy
import typer
from spacy.language import Language
from spacy.tokens import DocBin
from spacy.training import Example
from thinc.api import Adam
from wasabi import msg

WORDS_PER_BATCH = 1000
OURS = {"@architectures": "spacy-distil.Listener.v1"}
THEIRS = {
    "@architectures": "spacy-transformers.TransformerListener.v1",
    "grad_factor": 1.0,
    "pooling": {"@layers": "reduce_mean.v1"},
}


def pipeline(factory: str, encoder: dict[str, Any], listener: dict[str, Any]) -> Language:
    """An encoder and a tagger that listens to it."""
    nlp = spacy.blank("en")
    nlp.add_pipe(factory, name="transformer", config={"model": encoder})
    tagger = {"@architectures": "spacy.Tagger.v2", "tok2vec": listener}
    nlp.add_pipe("tagger", config={"model": tagger})
    return nlp


def pipelines(encoder: Path, windows: list[int]) -> dict[str, Language]:
    found = {}
    for window, mixed in itertools.product(windows, (False, True)):
        settings = {
            "name": str(encoder),
            "window": window or None,
            "device": "cpu",
            "mixed_precision": mixed,
        }
        name = f"spacy-distil, window {window or 'longest'}{', mixed precision' * mixed}"
        found[name] = pipeline("distil_transformer", settings, OURS)
    if importlib.util.find_spec("spacy_transformers"):
        found["spacy-transformers"] = pipeline("transformer", {"name": str(encoder)}, THEIRS)
    return found


def in_batches(examples: list[Example]) -> list[list[Example]]:
    batches: list[list[Example]] = [[]]
    for example in examples:
        if sum(len(other.reference) for other in batches[-1]) >= WORDS_PER_BATCH:
            batches.append([])
        batches[-1].append(example)
    return batches


def measure(
    task: Callable[[Language, list[Example]], int],
    subjects: dict[str, tuple[Language, list[Example]]],
    repeats: int,
) -> dict[str, list[float]]:
    """Words per second of each pipeline in each round. The task returns its number of words."""
    speeds: dict[str, list[float]] = {name: [] for name in subjects}
    for turn in range(repeats + 1):
        for name, (nlp, examples) in subjects.items():
            started = time.perf_counter()
            words = task(nlp, examples)
            if turn:  # the first round warms up
                speeds[name].append(words / (time.perf_counter() - started))
    return speeds


def predict(nlp: Language, examples: list[Example]) -> int:
    docs = nlp.pipe([nlp.make_doc(example.reference.text) for example in examples])
    return sum(map(len, docs))


def train(nlp: Language, examples: list[Example]) -> int:
    optimizer = Adam(1e-5, use_averages=False)
    for batch in in_batches(examples):
        nlp.update(batch, sgd=optimizer)
    return sum(len(example.reference) for example in examples)


def main(
    docs: Annotated[Path, typer.Argument(metavar="DOCS.spacy", exists=True)],
    encoder: Annotated[Path, typer.Argument(help="Model directory", exists=True)],
    window: Annotated[list[int] | None, typer.Option(help="Pieces; 0: the longest")] = None,
    limit: Annotated[int, typer.Option(help="Documents; 0 for all")] = 0,
    repeats: Annotated[int, typer.Option(help="Rounds")] = 5,
) -> None:
    """Print words per second, median and range, of prediction and of training."""
    subjects = {}
    for name, nlp in pipelines(encoder, window or [192, 0]).items():
        gold = list(DocBin().from_disk(docs).get_docs(nlp.vocab))[: limit or None]
        examples = [Example(nlp.make_doc(doc.text), doc) for doc in gold]
        nlp.initialize(partial(list, examples))
        subjects[name] = (nlp, examples)
    for task in (predict, train):
        rows = [
            (name, f"{statistics.median(s):,.0f}", f"{min(s):,.0f} - {max(s):,.0f}")
            for name, s in measure(task, subjects, repeats).items()
        ]
        header = (task.__name__, "words/s", "range")
        msg.table(rows, header=header, divider=True, aligns=("l", "r", "r"), max_col=60)


if __name__ == "__main__":
    typer.run(main)
