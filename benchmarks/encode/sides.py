"""The pipelines that are compared: ours with various settings, and spacy-transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import spacy
from spacy.language import Language
from spacy.training import Example
from thinc.api import fix_random_seed

from benchmarks.common.project import TRANSFORMER_CONFIG
from benchmarks.common.spacy_transformers_twin import copy_parameters, make_twin
from spacy_distil.errors import ConfigError
from spacy_distil.text.documents import read_examples

OURS, THEIRS = "spacy-distil", "spacy-transformers"
ENCODER = "transformer"
PIPES = ("tagger", "ner", "textcat")
# Documents on which both sides must have the same token vectors, and their length in words. They
# are short enough for one window of either.
COMPARED_DOCS, COMPARED_WORDS = 20, 90
TOLERANCE = 1e-3


@dataclass(frozen=True)
class SettingsRow:
    """Ours with some settings.

    key: its name in `--rows`.
    settings: the settings of `spacy-distil.DistilTransformer.v1` that differ from the defaults.
    encodes: whether they matter in prediction.
    """

    key: str
    title: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    encodes: bool = False


# The settings in configs/train.cfg that change the speed.
TEMPLATE_SETTINGS = {
    "window": 192,
    "overlap": 16,
    "attention_dropout": 0.0,
    "mixed_precision": True,
}
ROWS = (
    SettingsRow("default", OURS, encodes=True),
    SettingsRow("window", "window = 192", {"window": 192}, encodes=True),
    SettingsRow("dropout", "attention_dropout = 0", {"attention_dropout": 0.0}),
    SettingsRow("mixed", "mixed_precision", {"mixed_precision": True}),
    SettingsRow("template", "as in configs/train.cfg", TEMPLATE_SETTINGS),
    SettingsRow("checkpointing", "gradient_checkpointing", {"gradient_checkpointing": True}),
)


@dataclass(frozen=True)
class PipelineSide:
    """A pipeline, and the documents in its own vocab."""

    nlp: Language
    examples: list[Example]


def make_sides(
    rows: Sequence[SettingsRow], docs: Path, encoder: Path, *, limit: int = 0
) -> dict[str, PipelineSide]:
    """Make a pipeline for each row, and the one on spacy-transformers. All pipes start from the
    same weights.

    docs: annotated with tags, entities and categories.
    encoder: directory of weights and tokenizer.
    limit: the first N documents; 0 for all.
    RETURNS: by title, in the order of their turns. The first row and spacy-transformers come first:
        their ratio matters most, so they run right after each other.
    """
    fix_random_seed(0)
    sides: dict[str, PipelineSide] = {}
    for row in rows:
        nlp = make_ours(encoder.resolve(), row.settings)
        examples = read_examples(nlp, docs, limit=limit)
        if not sides:
            check_annotations(docs, examples)
        nlp.initialize(partial(list, examples))
        sides[row.title] = PipelineSide(nlp, examples)
    first = next(iter(sides.values()))
    for side in sides.values():
        for name in PIPES:
            copy_parameters(_model(first.nlp, name), _model(side.nlp, name))
    twin = make_twin(first.nlp, encoder.resolve(), first.examples)
    theirs = PipelineSide(twin, read_examples(twin, docs, limit=limit))
    sides = {rows[0].title: first, THEIRS: theirs, **sides}
    check_vectors(sides)
    return sides


def make_ours(encoder: Path, settings: Mapping[str, Any]) -> Language:
    """Make a pipeline of an encoder and the pipes of the template. It is not initialized."""
    components = spacy.util.load_config(TRANSFORMER_CONFIG)["components"]
    model = {"@architectures": "spacy-distil.DistilTransformer.v1", "name": str(encoder)}
    nlp = spacy.blank("en")
    config = {"model": {**model, "device": "cpu", **settings}}
    nlp.add_pipe("distil_transformer", name=ENCODER, config=config)
    for name in PIPES:
        nlp.add_pipe(name, config={"model": components[name]["model"]})
    return nlp


def check_annotations(docs: Path, examples: Sequence[Example]) -> None:
    """Raise ConfigError if a pipe has nothing to learn from."""
    gold = [example.reference for example in examples]
    annotated = {
        "tags": any(doc.has_annotation("TAG") for doc in gold),
        "entities": any(doc.ents for doc in gold),
        "categories": any(doc.cats for doc in gold),
    }
    if missing := [layer for layer, is_annotated in annotated.items() if not is_annotated]:
        raise ConfigError(
            f"{docs}: no document has {' or '.join(missing)}. The training epoch trains "
            f"{', '.join(PIPES)}: give documents with annotations for all of them."
        )


def check_vectors(sides: Mapping[str, PipelineSide]) -> None:
    """Raise ValueError if the token vectors of short docs differ between the pipelines."""
    texts = [
        example.predicted[:COMPARED_WORDS].text
        for example in sides[THEIRS].examples[:COMPARED_DOCS]
    ]
    expected = token_vectors(sides[THEIRS].nlp, texts)
    for name, side in sides.items():
        error = float(np.abs(token_vectors(side.nlp, texts) - expected).max(initial=0.0))
        if error > TOLERANCE:
            raise ValueError(f"Vectors of {name} and of {THEIRS} differ by up to {error}.")


def token_vectors(nlp: Language, texts: Sequence[str]) -> np.ndarray:
    """The vectors that the first pipe gets from its listener.

    RETURNS: (n_tokens of all texts, width) float32.
    """
    listener = _model(nlp, PIPES[0]).get_ref("tok2vec")
    with nlp.select_pipes(enable=[ENCODER]):
        return np.concatenate(listener.predict(list(nlp.pipe(texts))))


def _model(nlp: Language, name: str) -> Any:
    pipe: Any = nlp.get_pipe(name)
    return pipe.model
