"""How far a converted pipeline agrees with its original, on documents.

Both pipelines process the same tokens, and what they write is compared pipe by pipe: by what each
pipe says that it assigns, not by its class (`measures.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from math import floor
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
from spacy.language import Language
from spacy.scorer import Scorer
from spacy.tokens import Doc
from spacy.training import Example
from thinc.api import to_numpy

from spacy_distil.errors import ConfigError, CorpusError
from spacy_distil.export.measures import Question, find_questions, not_compared
from spacy_distil.pipelines import count_bytes
from spacy_distil.tables import Table
from spacy_distil.text.docs import same_tokens

TIMES = "\N{MULTIPLICATION SIGN}"
MISSING = "\N{EN DASH}"


@dataclass(frozen=True)
class Measure:
    """How far two pipelines agree in one annotation of one pipe. Shares are between 0 and 1.

    pipe: its name; of annotations that no pipe declares, the names of the pipes that declare none.
    annotation: what is compared, e.g. "token.tag", "token.dep+head", "doc.ents".
    unit: what is counted: "tokens" or "docs", of which a share is the same, or "spans", whose F
        score is taken with one pipeline's in place of the gold.
    n: number of units; of spans, those of both pipelines together.
    agreement: of the candidate with the original.
    candidate_alone, original_alone: of each pipeline's predictions for one document at a time with
        its own for batches; `None` where that was not measured.
    max_difference: largest difference of a score between candidate and original, of annotations
        that have scores (doc.cats).
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
    """How far token vectors (`doc.tensor`) differ.

    max, mean: absolute difference of their numbers.
    cosine: mean over the tokens that have a vector in one of the two.
    """

    max: float
    mean: float
    cosine: float


@dataclass(frozen=True)
class Speed:
    """Words/s of one pipeline, for orientation: this process, no tokenization.

    rounds: of each round.
    """

    rounds: list[float]

    @property
    def words_per_second(self) -> float:
        """Median of the rounds."""
        return median(self.rounds)


@dataclass(frozen=True)
class Agreement:
    """What was found.

    n_docs, n_words: the documents, and their spaCy tokens.
    batch_size: documents at a time.
    measures: in the order of the pipes.
    vectors: candidate against original; `None` where they write none, or of different widths.
    candidate_vectors_alone, original_vectors_alone: one document at a time against batches.
    not_compared: what the pipes assign and could not be compared, as "PIPE: ANNOTATION".
    original_scores, candidate_scores: spaCy's scores (0 to 1) against gold; empty without.
    headline: the scores that count in training, by the pipes' `default_score_weights`.
    speeds: of the original and of the candidate; `None` where no round was timed.
    original_bytes, candidate_bytes: size on disk; `None` where no paths were given.
    """

    n_docs: int
    n_words: int
    batch_size: int
    measures: list[Measure]
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
    def lowest(self) -> Measure | None:
        """The measure of the smallest agreement; `None` where no pipe but the encoder is there."""
        return min(self.measures, key=lambda measure: measure.agreement, default=None)

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON has it."""
        lowest = None if self.lowest is None else asdict(self.lowest)
        speeds = None
        if self.speeds is not None:
            names = ("original", "candidate")
            speeds = {
                name: {"words_per_second": speed.words_per_second, "rounds": speed.rounds}
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
    log: Callable[[str], None] = lambda message: None,
) -> Agreement:
    """Run both pipelines over the same documents and compare what they write.

    documents: their tokens count, not their annotations: the pipelines get copies without. See
        `spacy_distil.text.documents.read_documents`.
    gold: the documents' annotations, in the same order, to score both pipelines with.
    batch_size: documents at a time.
    alone: also compare `nlp(doc)` with `nlp.pipe(docs)` in each pipeline.
    rounds: timed ones over all documents, in turns; 0 for none.
    paths: directories of the original and of the candidate, for their size.
    log: told what is being done.
    """
    _check(original, candidate, documents, gold, batch_size=batch_size, rounds=rounds)
    pair = (original, candidate)
    log(f"Predictions for {len(documents):,} documents, in batches of {batch_size}")
    batched = [list(nlp.pipe(_copies(nlp, documents), batch_size=batch_size)) for nlp in pair]
    questions = find_questions(original, [*batched[0], *batched[1]])
    vectors = _compare_vectors(*batched)
    if not questions and vectors is None:
        raise ConfigError(
            "There is nothing to compare: no pipe of "
            f"{', '.join(original.pipe_names) or '(an empty pipeline)'} writes annotations, and "
            "not both pipelines write token vectors of the same width."
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
        measures=[_ask(question, batched, single) for question in questions],
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


def to_text(agreement: Agreement) -> str:
    """All tables, for the terminal."""
    tables = (table.to_text() for table in make_tables(agreement))
    return "\n".join([*tables, describe(agreement)])


def to_markdown(agreement: Agreement) -> str:
    """All tables, as Markdown."""
    tables = (table.to_markdown() for table in make_tables(agreement))
    return "\n\n".join([*tables, describe(agreement)]) + "\n"


def make_tables(agreement: Agreement) -> list[Table]:
    """Agreement of the pipes, of the token vectors, scores, and speed and size; what there is."""
    tables = [
        _pipes_table(agreement),
        _vectors_table(agreement),
        _scores_table(agreement),
        _speed_table(agreement),
    ]
    return [table for table in tables if table.rows and len(table.header) > 1]


def describe(agreement: Agreement) -> str:
    """How it was measured."""
    text = (
        f"{agreement.n_docs:,} documents, {agreement.n_words:,} spaCy tokens. Agreement in %: of "
        "tokens and docs the share on which both agree, of spans F; rounded down. In batches of "
        f"{agreement.batch_size} documents; alone: a pipeline's predictions for one document at a "
        "time against its own in batches."
    )
    if agreement.speeds is not None:
        text += (
            f" Words/s: median of {len(agreement.speeds[0].rounds)} rounds in turns, in this "
            "process, without tokenization: for orientation."
        )
    if agreement.not_compared:
        text += f" Not compared: {', '.join(agreement.not_compared)}."
    return text


def _check(
    original: Language,
    candidate: Language,
    documents: Sequence[Doc],
    gold: Sequence[Example] | None,
    *,
    batch_size: int,
    rounds: int,
) -> None:
    for setting, value, least in (("batch_size", batch_size, 1), ("rounds", rounds, 0)):
        if value < least:
            raise ConfigError(f"{setting} = {value}: expected at least {least}.")
    if not any(map(len, documents)):
        raise CorpusError(
            f"{len(documents)} documents, none of which has a token: one is needed at least to "
            "compare pipelines on."
        )
    names, others = original.pipe_names, candidate.pipe_names
    if set(names) != set(others):
        raise ConfigError(
            f"The pipelines do not have the same pipes: the original has {', '.join(names)}; the "
            f"candidate has {', '.join(others)}. Give the pipes the same names, and disable or "
            "exclude what only one has."
        )
    if gold is not None and [each.reference.text for each in gold] != [d.text for d in documents]:
        raise CorpusError(
            f"The gold ({len(gold)} documents) does not belong to the documents "
            f"({len(documents)}): expected the same texts in the same order."
        )


def _copies(nlp: Language, documents: Sequence[Doc]) -> list[Doc]:
    """The same tokens in the pipeline's own vocab, without annotations."""
    return [same_tokens(doc, nlp.vocab) for doc in documents]


def _ask(question: Question, batched: Sequence[list[Doc]], single: Sequence[list[Doc]]) -> Measure:
    """batched, single: docs of the original and of the candidate; `single` may be empty lists."""
    answer = question.compare(*batched)
    original_alone, candidate_alone = (
        question.compare(one, many).agreement if one else None
        for one, many in zip(single, batched, strict=True)
    )
    return Measure(
        pipe=question.pipe,
        annotation=question.annotation,
        unit=question.unit,
        n=answer.n,
        agreement=answer.agreement,
        candidate_alone=candidate_alone,
        original_alone=original_alone,
        max_difference=answer.max_difference,
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
    ours, theirs = (np.concatenate(side).astype(np.float64) for side in zip(*pairs, strict=True))
    difference = np.abs(ours - theirs)
    norms = np.linalg.norm(ours, axis=1), np.linalg.norm(theirs, axis=1)
    product = norms[0] * norms[1]
    # No cosine between a vector and none: it counts as 0, and between none and none not at all.
    some = (norms[0] > 0) | (norms[1] > 0)
    cosines = np.divide(
        (ours * theirs).sum(axis=1), product, out=np.zeros(len(product)), where=product > 0
    )
    return VectorDifference(
        max=float(difference.max()),
        mean=float(difference.mean()),
        cosine=float(cosines[some].mean()) if some.any() else 1.0,
    )


def _score(nlp: Language, docs: Sequence[Doc], gold: Sequence[Example]) -> dict[str, Any]:
    """The scores of `nlp.evaluate` that are numbers and have gold, from docs that are there."""
    examples = [Example(doc, each.reference) for doc, each in zip(docs, gold, strict=True)]
    scores = Scorer(nlp).score(examples)
    # spaCy's scorer gives 0 for categories where none are annotated.
    has_cats = any(each.reference.cats for each in gold)
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
    log: Callable[[str], None],
) -> tuple[Speed, Speed]:
    """In turns, so that what slows the machine down for a while slows down both."""
    speeds = (Speed([]), Speed([]))
    n_words = sum(map(len, documents))
    for i in range(rounds):
        log(f"Speed, round {i + 1} of {rounds}")
        for nlp, speed in zip(pair, speeds, strict=True):
            docs = _copies(nlp, documents)
            start = perf_counter()
            for _ in nlp.pipe(docs, batch_size=batch_size):
                pass
            speed.rounds.append(n_words / (perf_counter() - start))
    return speeds


def _pipes_table(agreement: Agreement) -> Table:
    alone = any(measure.original_alone is not None for measure in agreement.measures)
    header = ["pipe", "annotation", "agreement, %"]
    header += ["candidate alone", "original alone"] if alone else []
    header += ["of", "max score difference"]
    rows = []
    for measure in agreement.measures:
        cells = [measure.pipe, measure.annotation, _percent(measure.agreement)]
        if alone:
            cells += [_percent(measure.candidate_alone), _percent(measure.original_alone)]
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
            [name, f"{one.max:.2g}", f"{one.mean:.2g}", f"{one.cosine:.6f}"]
            for name, one in differences
            if one is not None
        ],
    )


def _scores_table(agreement: Agreement) -> Table:
    sides = {"original": agreement.original_scores, "candidate": agreement.candidate_scores}
    return Table(
        title="Scores against gold, %",
        header=["pipeline", *agreement.headline],
        rows=[
            [name, *(f"{scores[key] * 100:.2f}" for key in agreement.headline)]
            for name, scores in sides.items()
        ],
    )


def _speed_table(agreement: Agreement) -> Table:
    header, columns = ["pipeline"], []
    if agreement.speeds is not None:
        rates = [speed.words_per_second for speed in agreement.speeds]
        header += ["words/s", f"{TIMES} original"]
        columns += [[f"{rate:,.0f}" for rate in rates], [f"{r / rates[0]:.2f}" for r in rates]]
    if agreement.original_bytes is not None and agreement.candidate_bytes is not None:
        header.append("MB on disk")
        sizes = (agreement.original_bytes, agreement.candidate_bytes)
        columns.append([f"{size / 1e6:,.1f}" for size in sizes])
    names = ["original", "candidate"]
    return Table("Speed and size", header, [list(row) for row in zip(names, *columns, strict=True)])


def _percent(share: float | None) -> str:
    """Rounded down: 100.00 is said of full agreement alone."""
    return MISSING if share is None else f"{floor(share * 10_000) / 100:.2f}"
