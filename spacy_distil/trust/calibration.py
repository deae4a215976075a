"""Make probabilities believable: a temperature for each pipe, fitted on annotated documents."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from spacy.language import Language
from spacy.pipeline import TextCategorizer

from spacy_distil.errors import ConfigError, CorpusError
from spacy_distil.pipelines import check_pipeline, load_pipeline
from spacy_distil.report.reliability.collecting import Collected, collect, logit_layer
from spacy_distil.report.reliability.evidence import HIGHEST, LOWEST, Evidence
from spacy_distil.report.reliability.measures import Reliability, measure
from spacy_distil.runs.files import atomic_directory
from spacy_distil.runs.outputs import check_output
from spacy_distil.softmax import output_layer
from spacy_distil.text.documents import read_examples

# Fewer tokens or documents give a temperature that is mostly chance.
FEW = 100
# A larger share of the annotation that is left out is worth a warning.
MANY = 0.1
# The threshold of a textcat_multilabel that a temperature does not touch.
LIKELY = 0.5


class NothingToCalibrate(ConfigError):
    """No pipe of the pipeline has a temperature, or annotation to fit it on."""


@dataclass(frozen=True)
class PipeCalibration:
    """The calibration of one pipe.

    temperatures: one, or of a `textcat_multilabel` one for each label.
    before, after: reliability on the documents of `test`; without `test`, of `corpus`.
    """

    pipe: str
    temperatures: list[float]
    before: Reliability
    after: Reliability


@dataclass(frozen=True)
class Calibration:
    """Results of `calibrate`.

    pipes: in the order of the pipeline.
    skipped: of each other trainable pipe, why it has none.
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

    Raises NothingToCalibrate, and writes nothing, if no pipe can be calibrated.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size = {batch_size}: expected at least 1.")
    pipeline, output = str(pipeline), Path(output)
    check_pipeline(pipeline)
    check_output(output, force=force, source=Path(pipeline))
    nlp = load_pipeline(pipeline)
    log(f"Processing the documents of {corpus}")
    collected = collect(nlp, read_examples(nlp, Path(corpus)), batch_size)
    evidence = collected.evidence
    if not evidence:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in collected.skipped.items())
        raise NothingToCalibrate(f"No pipe of {pipeline} can be calibrated. {reasons}".rstrip())
    warnings = _warnings(nlp, collected, log)
    fitted = {name: _fit(name, own, warnings) for name, own in evidence.items()}
    tested = collected
    if test is not None:
        log(f"Processing the documents of {test}")
        tested = collect(nlp, read_examples(nlp, Path(test)), batch_size)
        missing = evidence.keys() - tested.evidence.keys()
        if missing:
            raise CorpusError(f"{test} has no annotation for {', '.join(sorted(missing))}.")
    pipes = [
        PipeCalibration(
            pipe=name,
            temperatures=temperatures,
            before=measure([tested.evidence[name].judge()], tested.n_docs),
            after=measure([tested.evidence[name].judge(temperatures)], tested.n_docs),
        )
        for name, temperatures in fitted.items()
    ]
    for name, temperatures in fitted.items():
        _set_temperatures(nlp.get_pipe(name), temperatures)
    nlp.meta["calibration"] = _record(nlp, fitted)
    with atomic_directory(output) as directory:
        nlp.to_disk(directory)
    return Calibration(pipes, collected.skipped, warnings)


def _fit(name: str, evidence: Evidence, warnings: list[str]) -> list[float]:
    """Fit the temperatures of a pipe. One at the end of the search becomes 1."""
    fitted = evidence.fit()
    if all(1.01 * LOWEST < temperature < 0.99 * HIGHEST for temperature in fitted):
        return fitted
    warnings.append(
        f"The best temperature of {name!r} is beyond the range of {LOWEST} to {HIGHEST}, so it "
        "stays as it is. The pipe is nearly always right on these documents, or no better than "
        "chance. Has it been trained on them?"
    )
    return [t if 1.01 * LOWEST < t < 0.99 * HIGHEST else 1.0 for t in fitted]


def _record(nlp: Language, fitted: dict[str, list[float]]) -> dict[str, list[float]]:
    """Return the temperatures of all calibrations up to now, by name of the pipe."""
    record = {**nlp.meta.get("calibration", {})}
    for name, temperatures in fitted.items():
        old = record.get(name, [])
        if len(old) != len(temperatures):
            old = [1.0] * len(temperatures)
        record[name] = [a * b for a, b in zip(old, temperatures, strict=True)]
    return record


def _warnings(nlp: Language, collected: Collected, log: Callable[[str], Any]) -> list[str]:
    warnings = []
    for name, own in collected.evidence.items():
        is_of_docs = own.what in ("documents", "answers")
        if own.n < FEW:
            unit = "documents" if is_of_docs else "tokens"
            warnings.append(
                f"{name!r} has {own.n:,} annotated {unit} alone, so its temperature is mostly "
                "chance. Calibrate on more."
            )
        n = collected.left_out.get(name, 0)
        if n:
            kind = "in documents with" if own.what == "entities" else "with"
            line = (
                f"{n:,} of {n + own.n:,} tokens with annotation for {name!r} do not count: tokens "
                f"{kind} other boundaries than the pipeline's, or with labels that it lacks."
            )
            if n > MANY * (n + own.n):
                warnings.append(line)
            else:
                log(line)
        neutral = {"answers": LIKELY, "entities": 0}.get(own.what)
        threshold = getattr(nlp.get_pipe(name), "cfg", {}).get("threshold", neutral)
        if neutral is not None and threshold != neutral:
            warnings.append(
                f"{name!r} has threshold = {threshold}. Probabilities change, and with them what "
                "it leaves out: choose it again."
            )
    return warnings


def _set_temperatures(pipe: Any, temperatures: list[float]) -> None:
    if not isinstance(pipe, TextCategorizer):
        output_layer(pipe.model).attrs["softmax_temperature"] *= temperatures[0]
        return
    layer = logit_layer(pipe)
    assert layer is not None
    factors: Any = layer.ops.asarray([1 / each for each in temperatures], dtype="f")
    weights: Any = layer.get_param("W")
    bias: Any = layer.get_param("b")
    layer.set_param("W", weights * factors.reshape(-1, 1))
    layer.set_param("b", bias * factors)
