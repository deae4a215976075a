"""Fit training configs to the annotation of a corpus.

    python -m scripts.configure CORPUS_DIR OUT_DIR CONFIG [CONFIG ...]

reads `corpus.json` and writes each config to OUT_DIR with the pipes that the corpus has
annotation for. So the same configs serve corpora with any of the annotation layers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import spacy
import typer
from confection import ConfigValidationError
from spacy.util import load_config
from thinc.api import Config
from wasabi import msg

from spacy_distil.errors import ConfigError, CorpusError, friendly_errors

LAYERS = ("pos", "tag", "ents", "cats")
# Of each factory, the annotation layer that it learns, and the score that counts for it.
PIPES = {
    "morphologizer": ("pos", "pos_acc"),
    "tagger": ("tag", "tag_acc"),
    "ner": ("ents", "ents_f"),
    "distil_ner": ("ents", "ents_f"),
    "textcat": ("cats", "cats_score"),
    "textcat_multilabel": ("cats", "cats_score"),
}
# Factories of entity recognizers. The configs have the first.
NER = ("ner", "distil_ner")


def read_summary(corpus_dir: Path) -> dict[str, Any]:
    """Read the `corpus.json` that `scripts/corpus.py` wrote."""
    path = corpus_dir / "corpus.json"
    if not path.is_file():
        raise CorpusError(f"No such file: {path}. Run the project's 'corpus' command first.")
    try:
        summary = json.loads(path.read_text(encoding="utf8"))
        if all(isinstance(summary[key], dict) for key in ("layers", "scored")):
            return summary
    except (ValueError, KeyError, TypeError):
        pass
    raise CorpusError(f"{path}: expected an object with 'layers' and 'scored', as corpus.py writes")


def configure(
    template: Config,
    summary: Mapping[str, Any],
    *,
    lang: str | None = None,
    ner: str = NER[0],
) -> Config:
    """Copy a config, with the pipes that the corpus can train.

    template: a training config, not interpolated.
    summary: contents of `corpus.json`.
    lang: language of the pipeline; None for the corpus's.
    ner: "distil_ner" to replace spaCy's `ner` if the pipeline has a `distil_transformer`. Other
        pipelines keep spaCy's.
    """
    if ner not in NER:
        raise ConfigError(f"Expected one of {', '.join(NER)} as entity recognizer, got {ner!r}")
    layers, scored = summary["layers"], summary["scored"]
    if not any(layers.get(layer) for layer, _ in PIPES.values()):
        raise CorpusError(
            "The corpus has none of the annotations that a pipe could learn: "
            "no part of speech, no tag, no entity, no category"
        )
    config = template.copy()
    config["nlp"]["lang"] = lang or summary["lang"]
    if ner == "distil_ner":
        use_distil_ner(config)
    kept: dict[str, str] = {}  # score by factory, of each pipe that stays
    for name in list(config["nlp"]["pipeline"]):
        factory = config["components"][name].get("factory")
        if factory in PIPES:
            layer, score = PIPES[factory]
            if not layers.get(layer):
                remove(config, name)
            else:
                if layer == "cats":
                    factory = set_exclusive(config, name, bool(layers.get("cats_exclusive")))
                kept[factory] = score
    if not kept:
        have = [layer for layer in LAYERS if layers.get(layer)]
        raise ConfigError(
            f"The config's pipeline {template['nlp']['pipeline']} has no pipe for what the "
            f"corpus annotates: {', '.join(have)}"
        )
    config["training"]["score_weights"] = score_weights(kept, scored)
    try:
        config.interpolate()
    except ConfigValidationError as error:
        raise ConfigError(f"The config refers to a block that was removed: {error}") from error
    return config


def remove(config: Config, name: str) -> None:
    """Remove a pipe from the pipeline, and its name from all settings that list pipes."""
    config["nlp"]["pipeline"].remove(name)
    for names in (config["nlp"].get("disabled"), *lists_of_pipes(config)):
        if isinstance(names, list) and name in names:
            names.remove(name)
    config["components"].pop(name)
    config.get("initialize", {}).get("components", {}).pop(name, None)


def lists_of_pipes(config: Config) -> list[list[str] | None]:
    training = config["training"]
    return [training.get("frozen_components"), training.get("annotating_components")]


def use_distil_ner(config: Config) -> None:
    """Replace `ner` by `distil_ner`, with the same name and on the same token vectors."""
    components = config["components"]
    if not any(each.get("factory") == "distil_transformer" for each in components.values()):
        return
    for name, settings in components.items():
        if settings.get("factory") == "ner":
            chosen: dict[str, Any] = {"factory": "distil_ner"}
            if "model" in settings:
                model = {"@architectures": "spacy.Tagger.v2", "nO": None}
                chosen["model"] = {**model, "tok2vec": settings["model"]["tok2vec"]}
            if "scorer" in settings:
                chosen["scorer"] = settings["scorer"]
            components[name] = chosen


def set_exclusive(config: Config, name: str, exclusive: bool) -> str:
    """Make the text classifier one of exclusive labels, or of independent labels.

    RETURNS: the factory, which becomes the name of the pipe, too.
    """
    factory = "textcat" if exclusive else "textcat_multilabel"
    settings = config["components"].pop(name)
    if settings["factory"] != factory:
        # These belong to the other factory. spaCy fills in the defaults.
        settings.pop("threshold", None)
        settings.pop("scorer", None)
    settings["factory"] = factory
    _set_everywhere(settings.get("model", {}), "exclusive_classes", exclusive)
    config["components"][factory] = settings
    initialize = config.get("initialize", {}).get("components", {})
    if name in initialize:
        initialize[factory] = initialize.pop(name)
    for names in (
        config["nlp"]["pipeline"],
        config["nlp"].get("disabled"),
        *lists_of_pipes(config),
    ):
        if isinstance(names, list):
            names[:] = [factory if other == name else other for other in names]
    return factory


def _set_everywhere(block: dict[str, Any], key: str, value: object) -> None:
    for name, content in block.items():
        if name == key:
            block[name] = value
        elif isinstance(content, dict):
            _set_everywhere(content, key, value)


def score_weights(kept: Mapping[str, str], scored: Mapping[str, bool]) -> dict[str, float | None]:
    """Weight the pipes that the development documents can score evenly.

    kept: score by factory. All other scores of these factories are null, because spaCy adds the
        default weights of a factory for scores that a config leaves out.
    """
    counted = [score for factory, score in kept.items() if scored.get(PIPES[factory][0])]
    if not counted:
        raise CorpusError(
            "The development documents have none of the annotations that the training documents "
            "have, so nothing could be scored while training. Give other documents with --dev"
        )
    nlp = spacy.blank("xx")  # knows the factories
    weights: dict[str, float | None] = {}
    for factory, score in kept.items():
        weights[score] = round(1 / len(counted), 4) if score in counted else None
        for other in nlp.get_factory_meta(factory).default_score_weights or ():
            weights.setdefault(other, None)
    return weights


def write_configs(
    corpus_dir: Path,
    out_dir: Path,
    templates: Sequence[Path],
    *,
    lang: str | None = None,
    ner: str = NER[0],
) -> list[Path]:
    """Write every config to `out_dir`, with the same file name, and return the paths."""
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
