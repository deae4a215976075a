"""Agreement of a converted pipeline with its original, measured on documents.

Both pipelines process the same tokens. Their annotations are compared pipe by pipe, by the
`assigns` of each pipe and not by its class (`annotation_metrics.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from spacy.language import Language
from spacy.scorer import Scorer
from spacy.tokens import Doc
from spacy.training import Example
from thinc.api import to_numpy

from spacy_distil.errors import ConfigError, CorpusError, DistilError
from spacy_distil.export.annotation_metrics import AnnotationMetric, find_metrics, not_compared
from spacy_distil.pipelines import count_bytes, one_line
from spacy_distil.report.process import Pass
from spacy_distil.report.scores import has_gold
from spacy_distil.report.speed import Speed
from spacy_distil.text.docs import same_tokens


@dataclass(frozen=True)
class PipeMeasure:
    """Agreement of two pipelines in one annotation of one pipe. Shares are between 0 and 1.

    pipe: name of the pipe. For annotations that no pipe declares, it lists the pipes that declare
        none.
    annotation: e.g. "token.tag", "token.dep+head", "doc.ents".
    unit: "tokens" or "docs" for a share of equal ones, or "spans" for an F score with the spans of
        one pipeline as gold.
    n: number of units; for spans, of both pipelines together.
    agreement: of the candidate with the original.
    candidate_alone, original_alone: agreement of a pipeline's predictions for one document at a
        time with its own for batches; `None` if not measured.
    max_difference: largest difference of a score between candidate and original, for annotations
        with scores (doc.cats).
    """

    pipe: str
    annotation: str
    unit: str
    n: int
    agreement: float
    candidate_alone: float | None = None
    original_alone: float | None = None
    max_difference: float | None = None


@dataclass(frozen=True)
class VectorDifference:
    """Difference of token vectors (`doc.tensor`).

    max, mean: largest and mean absolute difference of their numbers.
    cosine: mean cosine over the tokens that have a vector in at least one pipeline.
    """

    max: float
    mean: float
    cosine: float


@dataclass(frozen=True)
class Agreement:
    """Agreement of a candidate with its original.

    n_docs, n_words: number of documents and of their spaCy tokens.
    batch_size: documents per batch.
    measures: agreement by pipe and annotation, in the order of the pipes.
    vectors: difference of the candidate's vectors from the original's; `None` without vectors, or
        if their widths differ.
    candidate_vectors_alone, original_vectors_alone: difference between vectors for one document at
        a time and vectors for batches.
    not_compared: annotations that pipes declare and no metric covers, as "PIPE: ANNOTATION".
    original_scores, candidate_scores: spaCy's scores (0 to 1); empty without gold.
    headline: the scores that count in training, by the pipes' `default_score_weights`.
    speeds: of the original and of the candidate, for orientation: in this process, without
        tokenization. `None` if no round was timed.
    original_bytes, candidate_bytes: size on disk; `None` without paths.
    """

    n_docs: int
    n_words: int
    batch_size: int
    measures: list[PipeMeasure]
    vectors: VectorDifference | None
    candidate_vectors_alone: VectorDifference | None
    original_vectors_alone: VectorDifference | None
    not_compared: list[str]
    original_scores: dict[str, Any]
    candidate_scores: dict[str, Any]
    headline: list[str]
    speeds: tuple[Speed, Speed] | None
    original_bytes: int | None
    candidate_bytes: int | None

    @property
    def lowest(self) -> PipeMeasure | None:
        """The measure with the lowest agreement; `None` if the only pipe is the encoder."""
        return min(self.measures, key=lambda measure: measure.agreement, default=None)

    def to_dict(self) -> dict[str, Any]:
        """All results for JSON."""
        lowest = None if self.lowest is None else asdict(self.lowest)
        speeds = None
        if self.speeds is not None:
            names = ("original", "candidate")
            speeds = {
                name: {
                    "words_per_second": speed.words_per_second(self.batch_size).median,
                    "rounds": [each.words_per_second for each in speed.passes],
                }
                for name, speed in zip(names, self.speeds, strict=True)
            }
        return {"lowest": lowest, **asdict(self), "speeds": speeds}


def measure_agreement(
    original: Language,
    candidate: Language,
    documents: Sequence[Doc],
    *,
    gold: Sequence[Example] | None = None,
    batch_size: int = 256,
    alone: bool = True,
    rounds: int = 3,
    paths: tuple[Path, Path] | None = None,
    advice: str = "",
    log: Callable[[str], Any] = lambda message: None,
) -> Agreement:
    """Run both pipelines over the same documents and compare their annotations.

    documents: see `spacy_distil.text.documents.read_documents`. The pipelines get copies of the
        tokens without annotations.
    gold: the documents' annotations in the same order, to score both pipelines.
    batch_size: documents per batch.
    alone: whether to compare `nlp(doc)` with `nlp.pipe(docs)` in each pipeline too.
    rounds: timed rounds over all documents, in turns; 0 for none.
    paths: directories of the original and of the candidate, for their size.
    advice: the end of the error about a pipe of the candidate that fails.
    log: callback that receives a line for each step.

    Raises ConfigError if the pipelines cannot be compared or a pipe fails, and CorpusError if the
    documents are empty or do not belong to the gold.
    """
    _check(original, candidate, documents, gold, batch_size=batch_size, rounds=rounds)
    pair = (original, candidate)
    log(f"Predictions for {len(documents):,} documents, in batches of {batch_size}")
    batched = [
        _predict(original, documents, batch_size, "original"),
        _predict(candidate, documents, batch_size, "candidate", advice),
    ]
    metrics = find_metrics(original, [*batched[0], *batched[1]])
    vectors = _compare_vectors(*batched)
    if not metrics and vectors is None:
        raise ConfigError(
            "There is nothing to compare: no pipe of "
            f"{', '.join(original.pipe_names) or '(an empty pipeline)'} writes annotations, and "
            "the pipelines do not both write token vectors of one width."
        )
    single: list[list[Doc]] = [[], []]
    if alone:
        log("Predictions for one document at a time")
        single = [[nlp(doc) for doc in _copies(nlp, documents)] for nlp in pair]
    scores: list[dict[str, Any]] = [{}, {}]
    if gold is not None:
        scores = [_score(nlp, docs, gold) for nlp, docs in zip(pair, batched, strict=True)]
    return Agreement(
        n_docs=len(documents),
        n_words=sum(map(len, documents)),
        batch_size=batch_size,
        measures=[_measure_pipe(metric, batched, single) for metric in metrics],
        vectors=vectors,
        original_vectors_alone=_compare_vectors(single[0], batched[0]) if alone else None,
        candidate_vectors_alone=_compare_vectors(single[1], batched[1]) if alone else None,
        not_compared=not_compared(original),
        original_scores=scores[0],
        candidate_scores=scores[1],
        headline=_headline(original, scores),
        speeds=_time(pair, documents, batch_size, rounds, log) if rounds else None,
        original_bytes=None if paths is None else count_bytes(paths[0]),
        candidate_bytes=None if paths is None else count_bytes(paths[1]),
    )


def _check(
    original: Language,
    candidate: Language,
    documents: Sequence[Doc],
    gold: Sequence[Example] | None,
    *,
    batch_size: int,
    rounds: int,
) -> None:
    for setting, value, minimum in (("batch_size", batch_size, 1), ("rounds", rounds, 0)):
        if value < minimum:
            raise ConfigError(f"{setting} = {value}: expected at least {minimum}.")
    if not any(map(len, documents)):
        raise CorpusError(
            f"{len(documents)} documents, none of which has a token: comparing pipelines needs at "
            "least one."
        )
    names, others = original.pipe_names, candidate.pipe_names
    if set(names) != set(others):
        raise ConfigError(
            f"The pipelines do not have the same pipes: the original has {', '.join(names)}; the "
            f"candidate has {', '.join(others)}. Give the pipes the same names, and disable or "
            "exclude pipes that only one of them has."
        )
    if gold is not None and [each.reference.text for each in gold] != [d.text for d in documents]:
        raise CorpusError(
            f"The gold ({len(gold)} documents) does not belong to the documents "
            f"({len(documents)}): expected the same texts in the same order."
        )


def _predict(
    nlp: Language, documents: Sequence[Doc], batch_size: int, which: str, advice: str = ""
) -> list[Doc]:
    """Run a pipeline on copies of documents.

    which, advice: see `run_pipe`.
    """
    try:
        return list(nlp.pipe(_copies(nlp, documents), batch_size=batch_size))
    except DistilError:
        raise
    except Exception as error:  # a pipe may be the user's, and fail in any way
        for doc in _copies(nlp, documents):
            for name, pipe in nlp.pipeline:
                doc = run_pipe(name, pipe, doc, which, advice)
        # No document fails alone.
        raise ConfigError(f"The {which} pipeline fails: {_describe(error)}{advice}.") from error


def run_pipe(name: str, pipe: Callable[[Doc], Doc], doc: Doc, which: str, advice: str = "") -> Doc:
    """Run one pipe on a document.

    which: "original" or "candidate", for the error. advice: its end.
    Raises ConfigError, with the name of the pipe, if it fails.
    """
    try:
        return pipe(doc)
    except DistilError:
        raise
    except Exception as error:
        raise ConfigError(
            f"{name!r} fails in the {which} pipeline: {_describe(error)}{advice}."
        ) from error


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {one_line(str(error)).removesuffix('.')}"


def _copies(nlp: Language, documents: Sequence[Doc]) -> list[Doc]:
    """Copy the tokens into the vocab of a pipeline, without annotations."""
    return [same_tokens(doc, nlp.vocab) for doc in documents]


def _measure_pipe(
    metric: AnnotationMetric, batched: Sequence[list[Doc]], single: Sequence[list[Doc]]
) -> PipeMeasure:
    """Apply a metric of one pipe.

    batched, single: predictions of the original and of the candidate, for batches and for one
        document at a time. The lists in `single` may be empty.
    """
    value = metric.compare(*batched)
    original_alone, candidate_alone = (
        metric.compare(alone, docs).agreement if alone else None
        for alone, docs in zip(single, batched, strict=True)
    )
    return PipeMeasure(
        pipe=metric.pipe,
        annotation=metric.annotation,
        unit=metric.unit,
        n=value.n,
        agreement=value.agreement,
        candidate_alone=candidate_alone,
        original_alone=original_alone,
        max_difference=value.max_difference,
    )


def _compare_vectors(left: Sequence[Doc], right: Sequence[Doc]) -> VectorDifference | None:
    pairs = [
        (to_numpy(one.tensor), to_numpy(other.tensor))
        for one, other in zip(left, right, strict=True)
        if len(one)
    ]
    widths = {tensor.shape[1] if tensor.ndim == 2 else 0 for pair in pairs for tensor in pair}
    if len(widths) != 1 or widths == {0}:
        return None
    first, second = (np.concatenate(side).astype(np.float64) for side in zip(*pairs, strict=True))
    difference = np.abs(first - second)
    norms = np.linalg.norm(first, axis=1), np.linalg.norm(second, axis=1)
    product = norms[0] * norms[1]
    # The cosine of a vector and a zero vector counts as 0. Two zero vectors do not count.
    has_vector = (norms[0] > 0) | (norms[1] > 0)
    cosines = np.divide(
        (first * second).sum(axis=1), product, out=np.zeros(len(product)), where=product > 0
    )
    return VectorDifference(
        max=float(difference.max()),
        mean=float(difference.mean()),
        cosine=float(cosines[has_vector].mean()) if has_vector.any() else 1.0,
    )


def _score(nlp: Language, docs: Sequence[Doc], gold: Sequence[Example]) -> dict[str, Any]:
    """Score predictions as `nlp.evaluate` does.

    RETURNS: the scores that are numbers and have gold.
    """
    examples = [Example(doc, each.reference) for doc, each in zip(docs, gold, strict=True)]
    scores = Scorer(nlp).score(examples)
    has_cats = has_gold(gold, "cats")
    return {
        key: float(value)
        for key, value in scores.items()
        if isinstance(value, (int, float, np.number))
        and not key.startswith("token_")
        and (has_cats or not key.startswith("cats_"))
    }


def _headline(nlp: Language, scores: Sequence[dict[str, Any]]) -> list[str]:
    weights = [nlp.get_pipe_meta(name).default_score_weights or {} for name in nlp.pipe_names]
    keys = (key for each in weights for key, weight in each.items() if weight)
    return [key for key in dict.fromkeys(keys) if all(key in each for each in scores)]


def _time(
    pair: tuple[Language, Language],
    documents: Sequence[Doc],
    batch_size: int,
    rounds: int,
    log: Callable[[str], Any],
) -> tuple[Speed, Speed]:
    """Time both in turns, so that a slow spell of the machine slows both down."""
    speeds = (Speed(), Speed())
    n_words = sum(map(len, documents))
    since = perf_counter()
    for i in range(rounds):
        log(f"Speed, round {i + 1} of {rounds}")
        for nlp, speed in zip(pair, speeds, strict=True):
            docs = _copies(nlp, documents)
            start = perf_counter()
            for _ in nlp.pipe(docs, batch_size=batch_size):
                pass
            seconds = perf_counter() - start
            speed.passes.append(Pass(start - since, n_words, seconds, batch_size))
    return speeds
