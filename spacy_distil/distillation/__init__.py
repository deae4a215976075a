"""Distillation: `distil_encoder` makes a small encoder, `distil_pipeline` a small pipeline.

Importing this package imports neither torch nor transformers. Calling the functions does.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spacy_distil.errors import TRAINING, require_all

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

    config: path of a config file, or its sections as nested dicts. `configs/encoder.cfg` is an
        example with comments.
    output: directory that becomes an ordinary Hugging Face model directory. Beside the model it
        holds `distil.cfg` (the settings), `distil.json` (the results), `log.jsonl` (losses and
        held-out scores), `logs/` (TensorBoard), `cache/` (the tokenized corpus) and, during the
        run, `checkpoints/`.
    overrides: settings by dotted name, such as `{"training.max_steps": 100}`.
    gpu_id: number of a CUDA device, or -1 for the CPU. `None` chooses the best device available.
    resume: continue from the newest checkpoint in `output`, or start if there is none. If the run
        is finished, return at once. The result is the same as without an interruption.
    force: replace an earlier run in `output`. With `resume`, replace it only if it cannot be
        resumed because settings, teacher or corpus have changed.
    RETURNS: the directory of the student, and its last held-out scores.
    """
    require_all(TRAINING, purpose="Encoder distillation")
    from spacy_distil.distillation.encoder.run import EncoderRun

    run = EncoderRun(
        config, Path(output), overrides=overrides, gpu_id=gpu_id, resume=resume, force=force
    )
    return run.run()


def distil_pipeline(
    teacher: Language | str | Path,
    config: str | Path | Mapping[str, Any],
    output: str | Path,
    *,
    overrides: Mapping[str, Any] | None = None,
    gpu_id: int = -1,
    resume: bool = False,
    force: bool = False,
    until: int | None = None,
) -> DistilledPipeline:
    """Distil a trained pipeline into a student pipeline.

    teacher: a pipeline, or its directory or package. Any spaCy pipeline can be the teacher, with
        components of any kind. The student can learn its hidden states if its encoder is a
        `distil_transformer`.
    config: path of a config file, or its sections as nested dicts: a config for `spacy train` with
        a section [distillation]. `configs/pipeline.cfg` is an example with comments.
    output: directory for the student. As `spacy train` does, the run writes `model-best` and
        `model-last` there. Beside them it holds `distil.cfg` (the settings), `distil.json` (the
        results), `labels/` (the teacher's), `start/` (the encoder that the student starts from),
        `cache/` (the teacher's outputs for the documents) and, during the run, `checkpoints/`.
    overrides: settings by dotted name, such as `{"training.max_steps": 100}`.
    gpu_id: GPU for the layers of spaCy and thinc, or -1 for the CPU. The setting `device` of a
        `distil_transformer` chooses the device of its encoder.
    resume: continue from the newest checkpoint of the run in `output`, or start if there is none.
        If the run is finished, train nothing. The documents are read and compared in any case. If
        the training corpus changes them at random, as augmenters do, [training] needs a fixed seed.
    force: replace an earlier run in `output`, and a cache of other documents or of another teacher.
        With `resume`, replace them only if the run is not the same.
    until: pause after the evaluation at this step, or the first one after it. Continue with
        `resume`: the result is the same as without a pause.
    RETURNS: the directory of the best student, and its score.
    """
    from spacy_distil.distillation.pipeline.run import PipelineRun

    run = PipelineRun(
        teacher,
        config,
        Path(output),
        overrides=overrides,
        gpu_id=gpu_id,
        resume=resume,
        force=force,
        until=until,
    )
    return run.run()
