"""Distillation: `distil_encoder` makes a small encoder, `distil_pipeline` a small pipeline.

Importing this package imports neither torch nor transformers; calling the functions does.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spacy_distil.errors import require

if TYPE_CHECKING:
    from spacy.language import Language

    from spacy_distil.distillation.encoder.run import DistilledEncoder
    from spacy_distil.distillation.pipeline.run import DistilledPipeline

__all__ = ["distil_encoder", "distil_pipeline"]


def distil_encoder(
    config: str | Path | Mapping[str, Any],
    output: str | Path,
    *,
    overrides: Mapping[str, Any] | None = None,
    gpu_id: int | None = None,
    resume: bool = False,
    force: bool = False,
) -> DistilledEncoder:
    """Distil the teacher that `config` names into a student saved at `output`.

    config: path of a config file, or its sections as nested dicts. `configs/encoder.cfg` is a
        commented one.
    output: directory that becomes an ordinary Hugging Face model directory. Beside the model it
        holds `distil.cfg` (the settings), `distil.json` (the results), `log.jsonl` (losses and
        held-out scores), `logs/` (TensorBoard), `cache/` (the tokenised corpus) and, while the run
        lasts, `checkpoints/`.
    overrides: settings by dotted name, e.g. `{"training.max_steps": 100}`.
    gpu_id: `None` takes an accelerator where there is one, N the CUDA device N, -1 the CPU.
    resume: go on from the newest checkpoint in `output`; start where there is none; return at once
        where the run is finished. The outcome is that of a run that was never interrupted.
    force: replace what an earlier run left in `output`. With `resume`, only a run that cannot
        be resumed, because settings, teacher or corpus have changed, is replaced.
    """
    for module in ("torch", "transformers", "accelerate"):
        require(module, extra="train", purpose="Encoder distillation")
    from spacy_distil.distillation.encoder.run import run

    return run(config, Path(output), overrides=overrides, gpu_id=gpu_id, resume=resume, force=force)


def distil_pipeline(
    teacher: Language | str | Path,
    config: str | Path | Mapping[str, Any],
    output: str | Path,
    *,
    overrides: Mapping[str, Any] | None = None,
    gpu_id: int = -1,
    resume: bool = False,
    force: bool = False,
) -> DistilledPipeline:
    """Teach a student pipeline what a trained pipeline knows.

    teacher: a pipeline, or the directory or package of one. Any spaCy pipeline will do; its hidden
        states can be learned where its encoder is a `distil_transformer`.
    config: path of a config file, or its sections as nested dicts: what `spacy train` takes, with a
        section [distillation]. `configs/pipeline.cfg` is a commented one.
    output: directory for the student, `model-best` and `model-last` as of `spacy train`. Beside
        them it holds `distil.cfg` (the settings), `distil.json` (the results), `labels/` (the
        teacher's), `start/` (the encoder that the student starts from), `cache/` (what the teacher
        makes of the documents) and, while the run lasts, `checkpoints/`.
    overrides: settings by dotted name, e.g. `{"training.max_steps": 100}`.
    gpu_id: GPU for the layers of spaCy and thinc, or -1 for the CPU. Encoders of ours go where
        their own setting `device` says.
    resume: go on from the last evaluation of the run in `output`; start where there is none; train
        nothing where it is finished. The documents are read and compared in any case, so a training
        corpus that changes them at random, as augmenters do, needs a fixed [training] seed.
    force: replace what an earlier run left in `output`, and a cache of other documents or of
        another teacher. With `resume`, only where the run is not the same.
    """
    from spacy_distil.distillation.pipeline.run import run

    return run(
        teacher,
        config,
        Path(output),
        overrides=overrides,
        gpu_id=gpu_id,
        resume=resume,
        force=force,
    )
