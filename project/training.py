"""Training configs and schedules that fit a corpus of the project."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import spacy
from confection import ConfigValidationError
from spacy.util import get_lang_class, load_config
from thinc.api import Config

from spacy_distil.errors import ConfigError, CorpusError
from spacy_distil.runs.schedules import fit_training

LAYERS = ("pos", "tag", "ents", "cats")
# Factory -> the annotation layer that it learns, and its main score.
PIPES = {
    "morphologizer": ("pos", "pos_acc"),
    "tagger": ("tag", "tag_acc"),
    "ner": ("ents", "ents_f"),
    "distil_ner": ("ents", "ents_f"),
    "textcat": ("cats", "cats_score"),
    "textcat_multilabel": ("cats", "cats_score"),
}
# Factories of entity recognizers. The templates have the first one.
NER = ("ner", "distil_ner")
# Text without annotation counts as a part of the corpus up to this many times the annotated words.
MAX_TEXT = 10


def read_summary(corpus_dir: Path) -> dict[str, Any]:
    """Read the `corpus.json` that the project's 'corpus' command writes."""
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
    """Copy a training config with the pipes that a corpus can train.

    template: a training config, not interpolated. summary: content of `corpus.json`. lang: language
    of the pipeline; `None`: the language of the corpus. ner: "distil_ner" to replace spaCy's `ner`
    if the pipeline has a `distil_transformer`. A pipeline
        on spaCy's own layers keeps spaCy's `ner`.
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
    set_language(config, lang or summary["lang"])
    factories = [each.get("factory") for each in config["components"].values()]
    if ner == "distil_ner" and "distil_transformer" in factories:
        use_distil_ner(config)
    kept: dict[str, str] = {}  # factory of each head that stays -> its score
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
            f"The template's pipeline {template['nlp']['pipeline']} has no pipe for what the "
            f"corpus annotates: {', '.join(have)}"
        )
    config["training"]["score_weights"] = score_weights(kept, scored)
    try:
        config.interpolate()
    except ConfigValidationError as error:
        raise ConfigError(f"The config refers to a block that was removed: {error}") from error
    return config


def set_language(config: Config, lang: str) -> None:
    """Change the language, and with it a tokenizer that is the default of the old one."""
    old, new = (get_lang_class(code).default_config for code in (config["nlp"]["lang"], lang))
    config["nlp"]["lang"] = lang
    for section in ("nlp", "initialize"):
        if config.get(section, {}).get("tokenizer") == old[section]["tokenizer"]:
            config[section]["tokenizer"] = new[section]["tokenizer"]


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
    """Replace `ner` by `distil_ner`, under the same name and on the same token vectors."""
    components = config["components"]
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
    """Choose a text classifier of exclusive labels, or one of independent labels.

    RETURNS: the new name of the pipe, which is the name of its factory.
    """
    factory = "textcat" if exclusive else "textcat_multilabel"
    settings = config["components"].pop(name)
    if settings["factory"] != factory:
        # These belong to the other factory. spaCy fills in its own.
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
    """Give even weights to the pipes that the development documents can score.

    kept: factory -> score. All other scores of these factories are null, because spaCy adds the
        default weights of a factory for the scores that a config leaves out.
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


def schedule(
    config_path: Path,
    corpus_dir: Path,
    epochs: float,
    *,
    with_text: bool = False,
    min_steps: int = 0,
) -> dict[str, int]:
    """Compute settings for `epochs` passes over the training corpus: size of batches, steps,
    warm-up and evaluations. A small corpus gets smaller batches than the config says, see
    `fit_training`.

    with_text: whether the run passes over the text without annotation, too. Much more text than
        annotation makes the run longer up to a limit, and is then not read `epochs` times.
    min_steps: with fewer steps there are more passes, up to `MOST_PASSES`.
    """
    training = load_config(config_path)["training"]
    size = training["batcher"]["size"]
    if not isinstance(size, int):
        raise ConfigError(
            f"{config_path}: [training.batcher] size = {size!r} is no number of words, so epochs "
            "cannot be turned into steps"
        )
    summary = corpus_dir / "corpus.json"
    if not summary.is_file():
        raise CorpusError(f"No such file: {summary}. Run the project's 'corpus' command first.")
    counts = json.loads(summary.read_text(encoding="utf8"))
    tokens = counts["splits"]["train"]["tokens"]
    if with_text:
        tokens += min(counts["text"]["words"], MAX_TEXT * tokens)
    fitted = fit_training(tokens, batch_words=size, passes=epochs, min_steps=min_steps)
    settings = {
        "training.batcher.size": fitted.words,
        "training.max_steps": fitted.steps,
        "training.eval_frequency": fitted.eval_frequency,
    }
    learn_rate = training["optimizer"]["learn_rate"]
    if isinstance(learn_rate, dict) and "warmup_steps" in learn_rate:
        warmup = min(learn_rate["warmup_steps"], fitted.warmup)
        settings["training.optimizer.learn_rate.warmup_steps"] = warmup
    return settings


def parse_seeds(text: str) -> list[int]:
    """Read seeds, separated by commas."""
    try:
        return [int(seed) for seed in text.split(",")]
    except ValueError as error:
        raise ConfigError(
            f"seeds = {text!r}: expected whole numbers with commas between them"
        ) from error
