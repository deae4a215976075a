"""`fit`: find the best student that fits a budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spacy_distil.errors import TRAINING, require_all

if TYPE_CHECKING:
    from spacy_distil.fitting.results import Fit


def fit(
    teacher: str | Path,
    config: str | Path | Mapping[str, Any],
    output: str | Path,
    *,
    overrides: Mapping[str, Any] | None = None,
    gpu_id: int = -1,
    code: str | Path | None = None,
    resume: bool = False,
    force: bool = False,
    command: str = "",
    log: Callable[[str], Any] = lambda message: None,
) -> Fit:
    """Find the best student of a teacher that fits a budget, and quantize it.

        found = fit("teacher", "student.cfg", "fitted", overrides={"fit.latency_ms": 2})
        nlp = spacy.load(found.path)

    Students of many shapes are built, quantized and timed before any of them is trained. Only those
    that fit are, by successive halving, on one cache of the teacher's outputs.

    teacher: directory or package of a pipeline, as for `distil_pipeline`.
    config: config of the student, as for `distil_pipeline`, perhaps with a section [fit].
    output: directory for `best`, the quantized student, or `family`; for `fit.json`, `fit.md` and
        `fit.html`; and for the trainings of all `candidates`.
    overrides: settings by dotted name. The budget is in [fit], see `FitSettings`.
    gpu_id: as for `distil_pipeline`.
    code: Python file that the processes import that time students.
    resume: go on with the search in `output`.
    force: replace it.
    command: command line, for the record.
    log: callback that receives a line for each step.

    Raises ConfigError if there is no budget, or if no student fits it: with the nearest one.
    """
    require_all(TRAINING, purpose="Fitting a student")
    from spacy_distil.fitting.run import FitRun

    return FitRun(
        teacher,
        config,
        Path(output),
        overrides=overrides,
        gpu_id=gpu_id,
        code=None if code is None else str(code),
        resume=resume,
        force=force,
        command=command,
        log=log,
    ).run()
