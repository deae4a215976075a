"""The component `distil_qa`: answers to questions, as spans of a doc."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from spacy.errors import Errors
from spacy.language import Language
from spacy.pipeline import TrainablePipe
from spacy.tokens import Doc, Span
from spacy.training import Example, validate_examples, validate_get_examples
from spacy.vocab import Vocab
from thinc.api import Config, Model, Optimizer, set_dropout_rate
from thinc.types import Floats2d

from spacy_distil.encoding import Text
from spacy_distil.engines.files import PipeFolder
from spacy_distil.errors import ConfigError
from spacy_distil.pairs.questions import (
    Answers,
    add_extensions,
    answers_of,
    questions_of,
    set_answers,
    set_questions,
)
from spacy_distil.pairs.spans import Spans, find_spans
from spacy_distil.pairs.squad import score_answer
from spacy_distil.softmax import log_softmax

# Questions that are encoded together with their docs.
PAIRS_AT_ONCE = 64
DEFAULT_MODEL = Config().from_str(
    """
[model]
@architectures = "spacy-distil.QAHead.v1"

[model.tok2vec]
@architectures = "spacy-distil.Listener.v1"
pairs = true
"""
)["model"]


@dataclass(frozen=True)
class Answer:
    """An answer to a question.

    span: of the doc.
    probability: among all spans, and no answer.
    """

    span: Span
    probability: float

    @property
    def text(self) -> str:
        """The words of the answer."""
        return self.span.text


@Language.factory(
    "distil_qa",
    assigns=["doc._.answers"],
    default_config={
        "model": DEFAULT_MODEL,
        "max_answer_tokens": 30,
        "no_answer": True,
        "threshold": 0.0,
        "questions": "questions",
        "answers": "answers",
        "scorer": {"@scorers": "spacy-distil.qa_scorer.v1"},
    },
    default_score_weights={
        "qa_f1": 1.0,
        "qa_em": None,
        "qa_has_answer_f1": None,
        "qa_no_answer_acc": None,
    },
)
def make_distil_qa(
    nlp: Language,
    name: str,
    model: Model[Sequence[tuple[Text, Text]], list[Floats2d]],
    max_answer_tokens: int,
    no_answer: bool,
    threshold: float,
    questions: str,
    answers: str,
    scorer: Callable | None,
) -> DistilQA:
    """Construct the component.

    model: returns logits of begins and ends, such as `spacy-distil.QAHead.v1`.
    max_answer_tokens: most tokens of an answer.
    no_answer: whether a question may have no answer in the doc, as in SQuAD 2.0.
    threshold: a question has no answer if the score of no answer is larger than the best span's by
        more than this. `tune_threshold` finds one.
    questions, answers: the extensions `doc._.questions`, a list of strings that the pipe answers in
        `nlp.pipe`, and `doc._.answers`, a list for each.
    """
    return DistilQA(
        nlp.vocab,
        model,
        name,
        max_answer_tokens=max_answer_tokens,
        no_answer=no_answer,
        threshold=threshold,
        questions=questions,
        answers=answers,
        scorer=scorer,
    )


class DistilQA(PipeFolder, TrainablePipe):
    """Answers to questions about a doc, as spans of the doc.

    `answer` takes a doc and questions. In a pipeline, the pipe sets `doc._.answers` of the docs
    with questions in `doc._.questions`.
    """

    def __init__(
        self,
        vocab: Vocab,
        model: Model[Sequence[tuple[Text, Text]], list[Floats2d]],
        name: str = "qa",
        *,
        max_answer_tokens: int = 30,
        no_answer: bool = True,
        threshold: float = 0.0,
        questions: str = "questions",
        answers: str = "answers",
        scorer: Callable | None = None,
    ) -> None:
        if questions == answers:
            raise ConfigError(
                f"questions = answers = {answers!r} of {name!r}: expected two extensions."
            )
        if max_answer_tokens < 1:
            raise ConfigError(
                f"max_answer_tokens = {max_answer_tokens} of {name!r}: expected at least 1."
            )
        add_extensions(questions, answers)
        super().__init__(
            vocab,
            model,
            name,
            max_answer_tokens=max_answer_tokens,
            no_answer=no_answer,
            threshold=threshold,
            questions=questions,
            answers=answers,
        )
        self.scorer = scorer

    @property
    def threshold(self) -> float:
        """The setting."""
        return float(self.cfg["threshold"])

    # Prediction

    def answer(
        self, doc: Doc, questions: str | Sequence[str], n_best: int = 1
    ) -> list[list[Answer]]:
        """Answer questions about a doc.

        n_best: most answers to a question.
        RETURNS: for each question its answers, the most probable first; none if the doc has no
            answer.
        """
        if isinstance(questions, str):
            questions = [questions]
        return self.answer_pairs([(question, doc) for question in questions], n_best)

    def answer_pairs(self, pairs: Iterable[tuple[str, Doc]], n_best: int = 1) -> list[list[Answer]]:
        """Answer questions, each about a doc of its own.

        n_best, RETURNS: as in `answer`.
        """
        if n_best < 1:
            raise ConfigError(f"n_best = {n_best}: expected at least 1.")
        pairs = list(pairs)
        for pair in pairs:
            whole = isinstance(pair, (tuple, list)) and len(pair) == 2
            if not whole or not isinstance(pair[0], str) or not isinstance(pair[1], Doc):
                raise ConfigError(
                    f"{pair!r:.80}: expected a pair of a question, which is a string, and a doc."
                )
        return [
            self._to_answers(doc, spans)
            for (_, doc), spans in zip(pairs, self.find_spans(pairs, n_best), strict=True)
        ]

    def find_spans(self, pairs: Sequence[tuple[str, Doc]], n_best: int = 1) -> Iterator[Spans]:
        """Find the best spans, whether there may be no answer or not."""
        for logits in self.predict_pairs(pairs):
            yield find_spans(
                logits,
                n_best=n_best,
                max_tokens=self.cfg["max_answer_tokens"],
                may_be_missing=self.cfg["no_answer"],
            )

    def predict_pairs(self, pairs: Sequence[tuple[str, Doc]]) -> Iterator[np.ndarray]:
        """Compute logits of begins and ends, (1 + n_tokens, 2) for each pair, see `QAHead`."""
        for i in range(0, len(pairs), PAIRS_AT_ONCE):
            yield from map(
                self.model.ops.to_numpy, self.model.predict(pairs[i : i + PAIRS_AT_ONCE])
            )

    def _to_answers(self, doc: Doc, spans: Spans) -> list[Answer]:
        if spans.no_answer > self.threshold:
            return []
        return [
            Answer(doc[start:end], probability)
            for (start, end), probability in zip(spans.spans, spans.probabilities, strict=True)
        ]

    def predict(self, docs: Iterable[Doc]) -> list[list[list[Answer]]]:
        """Answer the questions that docs have in `doc._.questions`: for each doc and question."""
        docs = list(docs)
        questions = [questions_of(doc, self.cfg["questions"]) for doc in docs]
        pairs = [(each, doc) for doc, own in zip(docs, questions, strict=True) for each in own]
        found = iter(self.answer_pairs(pairs))
        return [[next(found) for _ in own] for own in questions]

    def set_annotations(self, docs: Iterable[Doc], answers: list[list[list[Answer]]]) -> None:
        """Set `doc._.answers` of the docs with questions.

        answers: as `predict` returns them.
        """
        for doc, own in zip(docs, answers, strict=True):
            if own:
                set_answers(doc, self.cfg["answers"], [list(map(_to_dict, each)) for each in own])

    # Training

    def update(
        self,
        examples: Iterable[Example],
        *,
        drop: float = 0.0,
        sgd: Optimizer | None = None,
        losses: dict[str, float] | None = None,
    ) -> dict[str, float]:
        """Learn from the questions and answers of the references.

        losses: receives the loss, summed over questions, under the component's name.
        """
        losses = {} if losses is None else losses
        losses.setdefault(self.name, 0.0)
        examples = list(examples)
        validate_examples(examples, "DistilQA.update")
        pairs, targets = self.read_gold(examples)
        if not pairs:
            return losses
        set_dropout_rate(self.model, drop)
        logits, backprop = self.model.begin_update(pairs)
        loss, d_logits = self.get_gold_loss(logits, targets)
        backprop(d_logits)
        if sgd not in (None, False):
            self.finish_update(sgd)
        losses[self.name] += loss
        return losses

    def read_gold(
        self, examples: Sequence[Example]
    ) -> tuple[list[tuple[str, Doc]], list[tuple[int, int]]]:
        """List questions with known answers, and the rows of begin and end of the first answer.

        Row 0 is no answer.
        """
        pairs, targets = [], []
        for example in examples:
            for question, target in zip(*self.read_targets(example), strict=True):
                if target is not None:
                    pairs.append((question, example.predicted))
                    targets.append(target)
        return pairs, targets

    def read_targets(self, example: Example) -> tuple[list[str], list[tuple[int, int] | None]]:
        """Return the questions of an example, and the rows of their answers, None if unknown."""
        questions, answers = self.read_answers(example)
        doc, targets = example.predicted, []
        for own in answers:
            target: tuple[int, int] | None = None
            if own:
                start, end = own[0]["start"], own[0]["end"]
                span = doc.char_span(start, end, alignment_mode="expand")
                if span is not None and len(span):
                    target = (span.start + 1, span.end)
            elif own is not None and self.cfg["no_answer"]:
                target = (0, 0)
            targets.append(target)
        return questions, targets

    def read_answers(self, example: Example) -> tuple[list[str], list[Answers | None]]:
        """Return the questions of the reference, and the answers to each; None if unknown.

        Raises ConfigError if there are not as many answers as questions.
        """
        questions = questions_of(example.reference, self.cfg["questions"])
        questions = questions or questions_of(example.predicted, self.cfg["questions"])
        answers = answers_of(example.reference, self.cfg["answers"])
        if answers is None:
            return questions, [None] * len(questions)
        if len(answers) != len(questions):
            raise ConfigError(
                f"The doc that begins with {example.reference.text[:40]!r} has {len(questions)} "
                f"questions in doc._.{self.cfg['questions']}, and answers to {len(answers)} in "
                f"doc._.{self.cfg['answers']}: expected a list for each question, empty for no "
                "answer."
            )
        return questions, list(answers)

    def get_gold_loss(
        self, logits: Sequence[Any], targets: Sequence[tuple[int, int]]
    ) -> tuple[float, list[Any]]:
        """Compute the mean cross-entropy of begin and end, summed over questions, and its gradient.

        logits: (1 + n_tokens, 2) for each question. targets: rows of begin and end.
        """
        xp = self.model.ops.xp
        total, gradients = 0.0, []
        for own, rows in zip(logits, targets, strict=True):
            d_own = xp.zeros_like(own)
            for column, row in enumerate(rows):
                first = self.first_row
                log_probs = log_softmax(own[None, first:, column], 1.0)[0]
                total -= 0.5 * float(log_probs[row - first])
                d_own[first:, column] = 0.5 * xp.exp(log_probs)
                d_own[row, column] -= 0.5
            gradients.append(d_own)
        if not np.isfinite(total):
            raise ValueError(Errors.E910.format(name=self.name))
        return total, gradients

    @property
    def first_row(self) -> int:
        """The first row of the logits that counts: 0 if there may be no answer, otherwise 1."""
        return 0 if self.cfg["no_answer"] else 1

    def get_loss(self, examples: Iterable[Example], scores: Any) -> tuple[float, Any]:
        """Compute the loss for the questions that `read_gold` lists, see `get_gold_loss`."""
        return self.get_gold_loss(scores, self.read_gold(list(examples))[1])

    # Scores

    def score(self, examples: Iterable[Example], **settings: Any) -> dict[str, Any]:
        """Score predictions. Docs that come without their questions, as `spacy evaluate` makes
        them, get them from the reference.
        """
        if self.scorer is None:
            return {}
        examples = list(examples)
        name = self.cfg["questions"]
        missing = [
            each
            for each in examples
            if questions_of(each.reference, name)
            and answers_of(each.predicted, self.cfg["answers"]) is None
        ]
        for each in missing:
            set_questions(each.predicted, name, questions_of(each.reference, name))
        docs = [each.predicted for each in missing]
        self.set_annotations(docs, self.predict(docs))
        return self.scorer(examples, pipe=self, **settings)

    def tune_threshold(self, examples: Iterable[Example]) -> float:
        """Set the threshold of no answer to the one with the best F1 on examples.

        RETURNS: the F1, from 0 to 1.
        """
        if not self.cfg["no_answer"]:
            raise ConfigError(
                f"{self.name!r} has no_answer = false, so it has no threshold to tune. Set "
                "no_answer = true, and train on questions without answers."
            )
        pairs, truths = [], []
        for example in examples:
            for question, own in zip(*self.read_answers(example), strict=True):
                if own is not None:
                    pairs.append((question, example.predicted))
                    truths.append([each["text"] for each in own])
        if not pairs:
            raise ConfigError("There are no questions with known answers to tune a threshold on.")
        differences, gains, total = [], [], 0.0
        for (_, doc), spans, truth in zip(pairs, self.find_spans(pairs), truths, strict=True):
            best = doc[slice(*spans.spans[0])].text if spans.spans else ""
            without = score_answer("", truth)[1]
            total += without
            differences.append(spans.no_answer)
            gains.append(score_answer(best, truth)[1] - without)
        # The questions that get an answer are the first ones in this order.
        order = np.argsort(differences, kind="stable")
        edges = np.concatenate([[-np.inf], np.array(differences)[order], [np.inf]])
        sums = np.append(0.0, np.cumsum(np.array(gains)[order]))
        sums[1:-1][edges[1:-2] == edges[2:-1]] = -np.inf  # no threshold lies between equal ones
        n = int(sums.argmax())
        known = [edge for edge in edges[n : n + 2].tolist() if np.isfinite(edge)]
        middle = float(np.mean(known)) if known else 0.0
        if len(known) == 1:
            middle += 1.0 if n else -1.0
        self.cfg["threshold"] = middle
        return (total + float(sums[n])) / len(pairs)

    # Initialization

    def initialize(
        self,
        get_examples: Callable[[], Iterable[Example]],
        *,
        nlp: Language | None = None,
    ) -> None:
        """Prepare the model."""
        validate_get_examples(get_examples, "DistilQA.initialize")
        self.model.initialize()


def _to_dict(answer: Answer) -> dict[str, Any]:
    span = answer.span
    return {
        "text": span.text,
        "start": span.start_char,
        "end": span.end_char,
        "probability": answer.probability,
    }


def make_qa_scorer() -> Callable[..., dict[str, Any]]:
    """Return the scorer of `distil_qa`."""
    return score_examples


def score_examples(
    examples: Iterable[Example], *, pipe: DistilQA, **settings: Any
) -> dict[str, Any]:
    """Score answers as the official script of SQuAD does.

    RETURNS: "qa_em" and "qa_f1", the mean exact match and F1 of all questions; "qa_has_answer_f1"
        and "qa_no_answer_acc" of the questions with and without an answer. From 0 to 1, and missing
        if there are no such questions.
    """
    by_kind: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    for example in examples:
        _, truths = pipe.read_answers(example)
        predicted = answers_of(example.predicted, pipe.cfg["answers"]) or [[] for _ in truths]
        if not truths:
            continue  # the doc was asked something else
        if len(predicted) != len(truths):
            raise ConfigError(
                f"The doc that begins with {example.predicted.text[:40]!r} has {len(predicted)} "
                f"answers in doc._.{pipe.cfg['answers']}, and its reference {len(truths)} "
                f"questions. Give both the same doc._.{pipe.cfg['questions']}."
            )
        for own, truth in zip(predicted, truths, strict=True):
            if truth is not None:
                texts = [each["text"] for each in truth]
                scored = score_answer(own[0]["text"] if own else "", texts)
                by_kind[bool(truth)].append(scored)
    found = [*by_kind[True], *by_kind[False]]
    if not found:
        return {}
    em, f1 = np.mean(found, axis=0).tolist()
    scores = {"qa_em": em, "qa_f1": f1}
    if by_kind[True]:
        scores["qa_has_answer_f1"] = float(np.mean([each[1] for each in by_kind[True]]))
    if by_kind[False]:
        scores["qa_no_answer_acc"] = float(np.mean([each[0] for each in by_kind[False]]))
    return scores
