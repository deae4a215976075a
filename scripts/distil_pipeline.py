"""Distil a student pipeline for some epochs, once per seed, with `spacy distil pipeline`.

    python -m scripts.distil_pipeline TEACHER CONFIG OUT_DIR --corpus DIR --text FILE --seeds 0,1

The student of seed N is OUT_DIR/seed-N/model-best; the one that scores best on the development
documents is copied to OUT_DIR/best. The teacher's outputs are kept in OUT_DIR/cache, for all seeds.
A seed that was interrupted is continued. A finished one is not distilled again.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from spacy.cli._util import parse_config_overrides
from wasabi import msg

from project.finished import finish, is_finished
from project.training import parse_seeds, schedule
from scripts.train import as_options, copy_best, describe_run
from spacy_distil.errors import ConfigError, friendly_errors


def distil_seed(
    teacher: Path, config: Path, out_dir: Path, settings: dict[str, Any], gpu_id: int
) -> None:
    """Distil one student, unless an earlier run did so from the same inputs.

    settings: overrides of the config, by dotted name; `None` is null.
    """
    run = describe_run(settings, teacher, config)
    if is_finished(out_dir, run):
        msg.info(f"{out_dir} is finished already")
        return
    command = ["spacy", "distil", "pipeline", str(teacher), str(config), "--output", str(out_dir)]
    command += ["--gpu-id", str(gpu_id), "--resume", "--force", *as_options(settings)]
    done = subprocess.run([sys.executable, "-m", *command])
    if done.returncode != 0:
        sys.exit(done.returncode)  # the command has printed the reason
    finish(out_dir, run)


def main(
    context: typer.Context,
    teacher: Annotated[Path, typer.Argument(help="Trained pipeline")],
    config: Annotated[Path, typer.Argument(help="Config of the student", exists=True)],
    out_dir: Annotated[Path, typer.Argument(help="Directory for the directories of the seeds")],
    corpus: Annotated[Path, typer.Option(help="Directory with train.spacy, dev.spacy")],
    epochs: Annotated[float, typer.Option(help="Passes over annotated documents and text", min=0)],
    text: Annotated[str, typer.Option(help="Text without annotation; empty for none")] = "",
    seeds: Annotated[str, typer.Option(help="Seeds, with commas between them")] = "0",
    min_steps: Annotated[int, typer.Option(help="Fewest steps, whatever the epochs", min=0)] = 0,
    gpu_id: Annotated[int, typer.Option(help="GPU for spaCy's own layers; -1 for none")] = -1,
) -> None:
    """Distil a student pipeline for some epochs, once per seed."""
    with friendly_errors():
        if not teacher.exists():
            raise ConfigError(f"{teacher} does not exist. Train the teacher first.")
        steps = schedule(config, corpus, epochs, with_text=bool(text), min_steps=min_steps)
        overrides = parse_config_overrides(context.args)
        numbers = parse_seeds(seeds)
        # Without text, switch the corpus off: an empty path cannot be read.
        unlabelled = {"paths.text": text} if text else {"distillation.corpus": None}
        for seed in numbers:
            settings = {
                "paths.train": corpus / "train.spacy",
                "paths.dev": corpus / "dev.spacy",
                **unlabelled,
                "distillation.cache": out_dir / "cache",
                "system.seed": seed,
                **steps,
                **overrides,
            }
            distil_seed(teacher, config, out_dir / f"seed-{seed}", settings, gpu_id)
        copy_best(out_dir, numbers)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False)
    app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(main)
    app()
