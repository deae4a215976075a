"""Pipeline distillation: a trained teacher pipeline teaches a student pipeline.

Read in this order: `run` (what happens, from config to saved student), `config`, `student`, `heads`
(how each kind of pipe learns), `hidden` (how the encoder learns), `cache`, `loop`.

Importing this package imports neither torch nor transformers; `teach` does.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spacy.language import Language

    from spacy_distil.teaching.run import Taught

__all__ = ["teach"]


def teach(
    teacher: Language | str | Path,
    config: str | Path | Mapping[str, Any],
    output: str | Path,
    *,
    overrides: Mapping[str, Any] | None = None,
    gpu_id: int = -1,
    resume: bool = False,
    overwrite: bool = False,
) -> Taught:
    """Teach a student pipeline what a trained pipeline knows.

    teacher: a pipeline, or the directory or package of one. Any spaCy pipeline will do; its hidden
        states can be learned where its encoder is a `distil_transformer`.
    config: path of a config file, or its sections as nested dicts: what `spacy train` takes, with a
        section [distillation]. `configs/student.cfg` is a commented one.
    output: directory for the student, `model-best` and `model-last` as of `spacy train`. Beside
        them it holds `teaching.cfg` (the settings), `teaching.json` (the results), `labels/` (the
        teacher's), `start/` (the encoder that the student starts from), `cache/` (what the teacher
        makes of the documents) and, while the run lasts, `checkpoints/`.
    overrides: settings by dotted name, e.g. `{"training.max_steps": 100}`.
    gpu_id: GPU for the layers of spaCy and thinc, or -1 for the CPU. Encoders of ours go where
        their own setting `device` says.
    resume: go on from the last evaluation of the run in `output`; start where there is none; train
        nothing where it is finished. The documents are read and compared in any case, so a training
        corpus that changes them at random, as augmenters do, needs a fixed [training] seed.
    overwrite: replace what an earlier run left in `output`, and a cache of other documents or of
        another teacher. With `resume`, only where the run is not the same.
    """
    from spacy_distil.teaching.run import run

    return run(
        teacher,
        config,
        Path(output),
        overrides=overrides,
        gpu_id=gpu_id,
        resume=resume,
        overwrite=overwrite,
    )
