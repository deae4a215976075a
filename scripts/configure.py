"""Fit training configs to the annotation of a corpus.

    python -m scripts.configure CORPUS_DIR OUT_DIR CONFIG [CONFIG ...]

reads `corpus.json` and writes each config to OUT_DIR with the pipes that the corpus has
annotation for. So the same configs serve corpora with any of the annotation layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from spacy.util import load_config
from wasabi import msg

from project.training import LAYERS, NER, configure, read_summary
from spacy_distil.errors import ConfigError, friendly_errors
from spacy_distil.text.languages import check_language


def write_configs(
    corpus_dir: Path,
    out_dir: Path,
    templates: Sequence[Path],
    *,
    lang: str | None = None,
    ner: str = NER[0],
) -> list[Path]:
    """Write every config to `out_dir`, with the same file name, and return the paths."""
    if lang is not None:
        check_language(lang)
    summary = read_summary(corpus_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    written = []
    for path in templates:
        if not path.is_file():
            raise ConfigError(f"No such config: {path}")
        template = load_config(path, interpolate=False)
        config = configure(template, summary, lang=lang, ner=ner)
        config.to_disk(out_dir / path.name)
        written.append(out_dir / path.name)
        pipes = config["nlp"]["pipeline"]
        msg.good(f"{out_dir / path.name}: {', '.join(pipes)}")
    lost = [layer for layer in LAYERS if not summary["layers"].get(layer)]
    if lost:
        msg.info(f"The corpus has no annotation of: {', '.join(lost)}")
    unscored = [
        layer
        for layer in LAYERS
        if summary["layers"].get(layer) and not summary["scored"].get(layer)
    ]
    if unscored:
        msg.warn(f"The development documents cannot score: {', '.join(unscored)}")
    return written


def main(
    corpus_dir: Annotated[Path, typer.Argument(help="Directory with corpus.json")],
    out_dir: Annotated[Path, typer.Argument(help="Directory to write the configs to")],
    templates: Annotated[list[Path], typer.Argument(help="Training configs")],
    lang: Annotated[str | None, typer.Option(help="Language. Default: the corpus's")] = None,
    ner: Annotated[str, typer.Option(help=f"Entity recognizer: {' or '.join(NER)}")] = NER[0],
) -> None:
    """Write training configs with the pipes that a corpus can train."""
    with friendly_errors():
        write_configs(corpus_dir, out_dir, templates, lang=lang, ner=ner)


if __name__ == "__main__":
    typer.run(main)
