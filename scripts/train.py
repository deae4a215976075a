"""Train a pipeline for some epochs, once per seed, with `spacy train`.

    python -m scripts.train CONFIG OUT_DIR --corpus DIR --epochs 8 --seeds 0,1 [--section.key value]

The pipeline of seed N is OUT_DIR/seed-N/model-best; the one that scores best on the development
documents is copied to OUT_DIR/best. A finished seed is not trained again, so an interrupted run
continues with the next one.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from spacy.cli._util import parse_config_overrides
from spacy.util import load_config
from wasabi import msg
from weasel.util import get_checksum

from project.finished import finish, is_finished
from project.training import parse_seeds, schedule
from spacy_distil.errors import friendly_errors
from spacy_distil.runs.files import atomic_directory


def describe_run(settings: Mapping[str, Any], *inputs: Path) -> dict[str, Any]:
    """Describe a run by its settings, and checksums of its inputs and of the settings' paths."""
    paths = [*inputs, *(Path(str(v)) for k, v in settings.items() if k.startswith("paths."))]
    return {
        "settings": {name: str(value) for name, value in settings.items()},
        "inputs": {str(path): get_checksum(path) for path in paths if path.exists()},
    }


def train_seed(config_path: Path, out_dir: Path, settings: dict[str, Any], gpu_id: int) -> None:
    """Train one pipeline, unless an earlier run did so from the same inputs."""
    run = describe_run(settings, config_path)
    if is_finished(out_dir, run):
        msg.info(f"{out_dir} is trained already")
        return
    if out_dir.exists():
        shutil.rmtree(out_dir)
    command = ["spacy", "train", str(config_path), "--output", str(out_dir)]
    command += ["--gpu-id", str(gpu_id), *as_options(settings)]
    done = subprocess.run([sys.executable, "-m", *command])
    if done.returncode != 0:
        sys.exit(done.returncode)  # the command has printed the reason
    finish(out_dir, run)


def as_options(settings: Mapping[str, Any]) -> list[str]:
    """Format settings as options of spaCy's commands: JSON, except text and paths."""
    options = []
    for name, value in settings.items():
        plain = isinstance(value, (str, Path))
        options += [f"--{name}", str(value) if plain else json.dumps(value)]
    return options


def dev_score(pipeline: Path) -> float:
    """The score by which `spacy train` chose the pipeline."""
    weights = load_config(pipeline / "config.cfg")["training"]["score_weights"]
    scores = json.loads((pipeline / "meta.json").read_text(encoding="utf8"))["performance"]
    return sum(weight * (scores.get(name) or 0.0) for name, weight in weights.items() if weight)


def copy_best(out_dir: Path, seeds: list[int]) -> None:
    """Copy the seed that scores best on the development documents to OUT_DIR/best."""
    pipelines = [out_dir / f"seed-{seed}" / "model-best" for seed in seeds]
    best = max(pipelines, key=dev_score)
    with atomic_directory(out_dir / "best") as directory:
        shutil.copytree(best, directory, dirs_exist_ok=True)
    msg.good(f"{out_dir / 'best'} is {best.parent.name}")


def main(
    context: typer.Context,
    config: Annotated[Path, typer.Argument(help="Training config", exists=True)],
    out_dir: Annotated[Path, typer.Argument(help="Directory for the directories of the seeds")],
    corpus: Annotated[Path, typer.Option(help="Directory with train.spacy, dev.spacy")],
    epochs: Annotated[float, typer.Option(help="Passes over the training corpus", min=0)],
    seeds: Annotated[str, typer.Option(help="Seeds, with commas between them")] = "0",
    min_steps: Annotated[int, typer.Option(help="Fewest steps, whatever the epochs", min=0)] = 0,
    gpu_id: Annotated[int, typer.Option(help="GPU for spaCy's own layers; -1 for none")] = -1,
) -> None:
    """Train a pipeline for some epochs, once per seed, with `spacy train`."""
    with friendly_errors():
        steps = schedule(config, corpus, epochs, min_steps=min_steps)
        overrides = parse_config_overrides(context.args)
        numbers = parse_seeds(seeds)
        for seed in numbers:
            settings = {
                "paths.train": corpus / "train.spacy",
                "paths.dev": corpus / "dev.spacy",
                "system.seed": seed,
                **steps,
                **overrides,
            }
            train_seed(config, out_dir / f"seed-{seed}", settings, gpu_id)
        copy_best(out_dir, numbers)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False)
    app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(main)
    app()
