"""Score every seed of a pipeline on the test documents, with `spacy evaluate`.

    python -m scripts.evaluate PIPELINES METRICS --corpus DIR

The scores of PIPELINES/seed-N/model-best go to METRICS-seed-N.json.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from spacy_distil.errors import ConfigError, friendly_errors


def main(
    pipelines: Annotated[Path, typer.Argument(help="Directory that scripts.train wrote")],
    metrics: Annotated[Path, typer.Argument(help="Path of the scores, without '-seed-N.json'")],
    corpus: Annotated[Path, typer.Option(help="Directory with test.spacy")],
    gpu_id: Annotated[int, typer.Option(help="GPU for spaCy's own layers; -1 for none")] = -1,
) -> None:
    """Score every seed of a pipeline on the test documents, with `spacy evaluate`."""
    with friendly_errors():
        seeds = sorted(pipelines.glob("seed-*"))
        if not seeds:
            raise ConfigError(f"{pipelines} has no seed-N. Train the pipeline first.")
        metrics.parent.mkdir(parents=True, exist_ok=True)
        for seed in seeds:
            paths = [str(seed / "model-best"), str(corpus / "test.spacy")]
            output = f"{metrics}-{seed.name}.json"
            command = ["spacy", "evaluate", *paths, "--output", output, "--gpu-id", str(gpu_id)]
            done = subprocess.run([sys.executable, "-m", *command])
            if done.returncode != 0:
                sys.exit(done.returncode)  # the command has printed the reason


if __name__ == "__main__":
    typer.run(main)
