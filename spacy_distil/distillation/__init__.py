"""Encoder distillation: a teacher encoder becomes a smaller student encoder.

Read in this order: `run` (what happens, from config to saved student) and `config`; then

- text: `corpus` (`reading`, `packing`, `building`, `shards`), `steps`, `batches`;
- models: `teachers` (`families`, `heads`), `students` (`layer_choice`, `shapes`, `importance`,
  `pruning`);
- learning: `objectives` (`base` first), `distiller`, `loop` (`schedules`, `memory`, `compilation`,
  `evaluation`, `divergence`, `interruption`, `checkpoint`, `progress`);
- what is left of it: `card` (`licence`).

`student_report`, `flops` and `heat_map` tell what a student costs.

Importing this package imports neither torch nor transformers; `distil_encoder` does.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spacy_distil.errors import require

if TYPE_CHECKING:
    from spacy_distil.distillation.run import Distilled

__all__ = ["distil_encoder"]


def distil_encoder(
    config: str | Path | Mapping[str, Any],
    output: str | Path,
    *,
    overrides: Mapping[str, Any] | None = None,
    gpu_id: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> Distilled:
    """Distil the teacher that `config` names into a student saved at `output`.

    config: path of a config file, or its sections as nested dicts. `configs/distil.cfg` is a
        commented one.
    output: directory that becomes an ordinary Hugging Face model directory. Beside the model it
        holds `distil.cfg` (the settings), `distil.json` (the results), `log.jsonl` (losses and
        held-out scores), `logs/` (TensorBoard), `cache/` (the tokenised corpus) and, while the run
        lasts, `checkpoints/`.
    overrides: settings by dotted name, e.g. `{"training.max_steps": 100}`.
    gpu_id: `None` takes an accelerator where there is one, N the CUDA device N, -1 the CPU.
    resume: go on from the newest checkpoint in `output`; start where there is none; return at once
        where the run is finished. The outcome is that of a run that was never interrupted.
    overwrite: replace what an earlier run left in `output`. With `resume`, only a run that cannot
        be resumed, because settings, teacher or corpus have changed, is replaced.
    """
    for module in ("torch", "transformers", "accelerate"):
        require(module, extra="train", purpose="Encoder distillation")
    from spacy_distil.distillation.run import run

    return run(
        config, Path(output), overrides=overrides, gpu_id=gpu_id, resume=resume, overwrite=overwrite
    )
