"""Make probabilities believable: a temperature for each pipe, fitted on annotated documents."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from spacy.attrs import IS_SPACE  # type: ignore[import-not-found]
from spacy.language import Language
from spacy.pipeline import EditTreeLemmatizer, Tagger, TextCategorizer
from spacy.pipeline.textcat_multilabel import MultiLabel_TextCategorizer
from spacy.training import Example
from spacy.util import minibatch
from thinc.api import Model

from spacy_distil.errors import ConfigError, CorpusError
from spacy_distil.ner.decoding import MISSING
from spacy_distil.ner.pipe import DistilNER
from spacy_distil.pipelines import check_pipeline, load_pipeline
from spacy_distil.runs.files import atomic_directory
from spacy_distil.runs.outputs import check_output
from spacy_distil.softmax import is_softmax, log_probabilities, output_layer
from spacy_distil.text.documents import read_examples
from spacy_distil.trust.evidence import HIGHEST, LOWEST, Answers, Choices, Entities, Evidence
from spacy_distil.trust.reliability import Reliability

# Fewer tokens or documents give a temperature that is mostly chance.
FEW = 100
_TINY = 1e-30


@dataclass(frozen=True)
class PipeCalibration:
    """The calibration of one pipe.

    what: what is predicted: "tokens", "entities", "documents" or "answers".
    temperatures: one, or of a `textcat_multilabel` one for each label.
    before, after: reliability on the documents of `calibrate`'s `test`, or else of its `corpus`.
    """

    pipe: str
    what: str
    temperatures: list[float]
    before: Reliability
    after: Reliability


@dataclass(frozen=True)
class Calibration:
    """Results of `calibrate`.

    pipes: in the order of the pipeline.
    skipped: names of the other trainable pipes, and why each has none.
    warnings: what may not be as it should be.
    """

    pipes: list[PipeCalibration]
    skipped: dict[str, str]
    warnings: list[str]

    def to_dict(self) -> dict[str, Any]:
        """All results for JSON."""
        return asdict(self)


def calibrate(
    pipeline: str | Path,
    output: str | Path,
    *,
    corpus: str | Path,
    test: str | Path | None = None,
    batch_size: int = 64,
    force: bool = False,
    log: Callable[[str], Any] = lambda message: None,
) -> Calibration:
    """Write a pipeline whose probabilities fit the annotation of documents.

    Each pipe gets the temperature with the highest likelihood (Guo et al. 2017, "On Calibration of
    Modern Neural Networks", arXiv 1706.04599), a `textcat_multilabel` one for each label. It is a
    part of the pipe's model, so it stays wherever the pipeline goes. Predictions do not change.

    pipeline: directory or package of a trained pipeline, on any engine.
    output: directory of the new pipeline.
    corpus: annotated documents, .spacy, on which the pipeline has not been trained.
    test: other annotated documents to measure the result on; `None` for `corpus`.
    batch_size: documents processed at a time.
    force: whether to replace a pipeline in `output`.
    log: callback that receives a line for each step.
    """
    pipeline, output = str(pipeline), Path(output)
    check_pipeline(pipeline)
    check_output(output, force=force, source=Path(pipeline))
    nlp = load_pipeline(pipeline)
    log(f"Processing the documents of {corpus}")
    skipped: dict[str, str] = {}
    evidence = collect(nlp, read_examples(nlp, Path(corpus)), batch_size, skipped)
    if not evidence:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in skipped.items())
        raise ConfigError(f"No pipe of {pipeline} can be calibrated. {reasons}".rstrip())
    fitted = {name: own.fit() for name, own in evidence.items()}
    tested = evidence
    if test is not None:
        log(f"Processing the documents of {test}")
        tested = collect(nlp, read_examples(nlp, Path(test)), batch_size, {})
        missing = evidence.keys() - tested.keys()
        if missing:
            raise CorpusError(f"{test} has no annotation for {', '.join(sorted(missing))}.")
    pipes = [
        PipeCalibration(
            pipe=name,
            what=tested[name].what,
            temperatures=temperatures,
            before=tested[name].score([1.0] * len(temperatures)),
            after=tested[name].score(temperatures),
        )
        for name, temperatures in fitted.items()
    ]
    for name, temperatures in fitted.items():
        _set_temperatures(nlp.get_pipe(name), temperatures)
    nlp.meta["calibration"] = {
        name: {"temperatures": temperatures, "n": evidence[name].n}
        for name, temperatures in fitted.items()
    }
    with atomic_directory(output) as directory:
        nlp.to_disk(directory)
    return Calibration(pipes, skipped, _warnings(evidence, fitted))


def _warnings(evidence: dict[str, Evidence], fitted: dict[str, list[float]]) -> list[str]:
    warnings = []
    for name, own in evidence.items():
        if own.n < FEW:
            unit = "documents" if isinstance(own, Answers) or own.what == "documents" else "tokens"
            warnings.append(
                f"{name!r} has {own.n:,} annotated {unit} alone, so its temperature is mostly "
                "chance. Calibrate on more."
            )
        if any(not 1.01 * LOWEST < t < 0.99 * HIGHEST for t in fitted[name]):
            warnings.append(
                f"The temperatures of {name!r} reach the end of the search, {LOWEST} to {HIGHEST}: "
                "the pipe is nearly always right on these documents, or no better than chance. "
                "Has it been trained on them?"
            )
    return warnings


def collect(
    nlp: Language, examples: Iterable[Example], batch_size: int, skipped: dict[str, str]
) -> dict[str, Evidence]:
    """Predict documents pipe by pipe, and keep the logits beside the truth.

    skipped: gets the reason of each trainable pipe without evidence.
    """
    found: dict[str, list[Any]] = {}
    readers = {name: reader for name, pipe in nlp.pipeline if (reader := _reader_of(pipe))}
    for batch in minibatch(examples, batch_size):
        docs = [example.predicted for example in batch]
        for name, pipe in nlp.pipeline:
            if name in readers:
                own = readers[name](pipe, _with_predicted(batch, docs))
                if own is not None:
                    found.setdefault(name, []).append(own)
            docs = list(pipe.pipe(docs)) if hasattr(pipe, "pipe") else [pipe(doc) for doc in docs]
    for name, pipe in nlp.pipeline:
        if name not in found and getattr(pipe, "is_trainable", False):
            if name in readers:
                skipped[name] = "the documents have no annotation for it"
            elif getattr(pipe, "labels", ()):
                skipped[name] = "it has no probabilities that a temperature could change"
    return {name: _JOIN[readers[name]](parts) for name, parts in found.items()}


def _with_predicted(batch: Sequence[Example], docs: Sequence[Any]) -> list[Example]:
    return [
        example if example.predicted is doc else Example(doc, example.reference)
        for example, doc in zip(batch, docs, strict=True)
    ]


Reader = Callable[[Any, list[Example]], Any]


def _reader_of(pipe: Any) -> Reader | None:
    """Return the function that reads the evidence of a pipe, None if it has none."""
    model = getattr(pipe, "model", None)
    if not isinstance(model, Model):
        return None
    if isinstance(pipe, TextCategorizer):
        if _weights_of(pipe) is None:
            return None
        return _read_answers if isinstance(pipe, MultiLabel_TextCategorizer) else _read_category
    if not is_softmax(model):
        return None
    if isinstance(pipe, DistilNER):
        return _read_entities
    # An edit tree is not right or wrong in itself: others may make the same lemma.
    if isinstance(pipe, Tagger) and not isinstance(pipe, EditTreeLemmatizer):
        return _read_tokens
    return None


def _read_tokens(pipe: Any, examples: list[Example]) -> Any:
    examples = [example for example in examples if len(example.predicted)]
    if not examples:
        return None
    ops = pipe.model.ops
    logs = log_probabilities(pipe.model, [example.predicted for example in examples])
    # The gradient of all zeros is -1 for the label of each annotated token.
    _, gradients = pipe.get_loss(examples, [ops.xp.zeros_like(each) for each in logs])
    gradient = ops.to_numpy(ops.flatten(gradients))
    rows = np.flatnonzero(gradient.min(axis=1) < 0)
    if not len(rows):
        return None
    return ops.to_numpy(ops.flatten(logs))[rows], gradient[rows].argmin(axis=1)


def _read_entities(pipe: DistilNER, examples: list[Example]) -> Any:
    kept = [example for example in examples if _is_possible(pipe, example)]
    batch = pipe.read([example.predicted for example in kept], keep_entities=False)
    return batch and (batch, pipe.gold_tags(kept))


def _is_possible(pipe: DistilNER, example: Example) -> bool:
    """Whether all entities of a document are known, and the pipe could find them."""
    doc = example.predicted
    tags, spaces = pipe.gold_tags([example]), doc.to_array(IS_SPACE) == 1
    if (tags[~spaces if pipe.scheme != "BILUO" else slice(None)] == MISSING).any():
        return False
    ents = example.get_aligned_spans_y2x(example.reference.ents)
    return not any(token.is_sent_start for ent in ents for token in ent[1:])


def _read_category(pipe: TextCategorizer, examples: list[Example]) -> Any:
    probs, truth, known = _read_cats(pipe, examples)
    rows = np.flatnonzero((truth & known).any(axis=1))
    if not len(rows):
        return None
    return np.log(np.maximum(probs[rows], _TINY)), truth[rows].argmax(axis=1)


def _read_answers(pipe: TextCategorizer, examples: list[Example]) -> Any:
    probs, truth, known = _read_cats(pipe, examples)
    if not known.any():
        return None
    probs = np.clip(probs.astype("d"), _TINY, 1 - 1e-16)
    return np.log(probs) - np.log1p(-probs), truth, known


def _read_cats(pipe: TextCategorizer, examples: list[Example]) -> tuple[np.ndarray, ...]:
    """RETURNS (probabilities, truth, known): (n_docs, n_labels) each, the last two bool."""
    docs = [example.predicted for example in examples]
    probs = pipe.model.ops.to_numpy(pipe.model.predict(docs))
    cats = [example.reference.cats for example in examples]
    known = np.array([[label in own for label in pipe.labels] for own in cats], dtype=bool)
    truth = np.array([[own.get(label, 0) >= 0.5 for label in pipe.labels] for own in cats])
    return probs, truth, known


def _join_tokens(parts: list[Any]) -> Evidence:
    return Choices("tokens", *map(np.concatenate, zip(*parts, strict=True)))


def _join_category(parts: list[Any]) -> Evidence:
    return Choices("documents", *map(np.concatenate, zip(*parts, strict=True)))


def _join_answers(parts: list[Any]) -> Evidence:
    return Answers(*map(np.concatenate, zip(*parts, strict=True)))


def _join_entities(parts: list[Any]) -> Evidence:
    return Entities(parts)


_JOIN: dict[Reader, Callable[[list[Any]], Evidence]] = {
    _read_tokens: _join_tokens,
    _read_entities: _join_entities,
    _read_category: _join_category,
    _read_answers: _join_answers,
}


def _weights_of(pipe: TextCategorizer) -> Model | None:
    """Return the layer whose weights make the logits of a text classifier, if it has one."""
    if not pipe.model.has_ref("output_layer"):
        return None
    layer = pipe.model.get_ref("output_layer")
    return layer if layer.name in ("softmax", "linear") and layer.has_param("W") else None


def _set_temperatures(pipe: Any, temperatures: list[float]) -> None:
    if not isinstance(pipe, TextCategorizer):
        output_layer(pipe.model).attrs["softmax_temperature"] *= temperatures[0]
        return
    layer = _weights_of(pipe)
    assert layer is not None
    factors: Any = layer.ops.asarray([1 / each for each in temperatures], dtype="f")
    weights: Any = layer.get_param("W")
    bias: Any = layer.get_param("b")
    layer.set_param("W", weights * factors.reshape(-1, 1))
    layer.set_param("b", bias * factors)
