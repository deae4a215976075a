"""Small pipelines with pipes that read two texts together."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import spacy
import torch
import transformers
from spacy.language import Language
from spacy.training import Example

from spacy_distil.component.shim import EncoderShim
from spacy_distil.pairs.layers import encoder_of
from tests.util import SENTENCES

# Odd texts: without tokens or pieces, of other scripts, with control characters and special pieces.
ODD = (
    "",
    "   ",
    "\n\t",
    "Ann\n\nvisited  Rome ",
    "😀👩‍👩‍👧 é́ạ̈",
    "東京 と 北京",
    "\x00\x07\u200b",
    "[SEP] </s>",
)
PAIRS = [
    *itertools.pairwise(SENTENCES),
    *zip(ODD, reversed(ODD), strict=True),
    *((text, SENTENCES[0]) for text in ODD),
    *((SENTENCES[0], text) for text in ODD),
]
LABELS = ("entailment", "neutral", "contradiction")


def build(encoder: Path, factory: str = "distil_pair", *, tagger: bool = False, **encoding: Any):
    """A pipeline with random weights behind an encoder. encoding: its settings."""
    nlp = spacy.blank("en")
    own = {
        "@architectures": "spacy-distil.DistilTransformer.v1",
        "name": str(encoder),
        "learn_rate_scale": 1.0,
        **encoding,
    }
    nlp.add_pipe("distil_transformer", name="transformer", config={"model": own})
    if tagger:
        listener = {"@architectures": "spacy-distil.Listener.v1"}
        model = {"@architectures": "spacy.Tagger.v2", "tok2vec": listener}
        pipe: Any = nlp.add_pipe("tagger", config={"model": model})
        for label in ("A", "B"):
            pipe.add_label(label)
    pipe = nlp.add_pipe(factory, name=factory.removeprefix("distil_"))
    if factory == "distil_pair":
        for label in LABELS:
            pipe.add_label(label)
    nlp.initialize(lambda: [pair_example(nlp, "a", "b", "neutral")])
    randomize(pipe.model)
    return nlp


def randomize(model: Any) -> None:
    """Give the head of a pipe weights as after training: the output layer begins at zero."""
    generator = torch.Generator().manual_seed(0)
    for name in ("output_layer", "hidden"):
        if model.maybe_get_ref(name) is not None:
            layer = model.get_ref(name)
            for param in layer.param_names:
                shape = layer.get_param(param).shape
                layer.set_param(param, torch.randn(shape, generator=generator).numpy() * 0.3)


def pair_example(nlp: Language, text: str, other: str, label: str | None) -> Example:
    predicted, reference = nlp.make_doc(text), nlp.make_doc(text)
    for doc in (predicted, reference):
        if doc.has_extension("other"):
            doc._.other = other
    if label is not None:
        reference.cats = {each: float(each == label) for each in LABELS}
    return Example(predicted, reference)


def shim_of(nlp: Language, name: str = "pair") -> EncoderShim:
    pipe: Any = nlp.get_pipe(name)
    encoder = encoder_of(pipe.model.get_ref("pair_rows"))
    assert encoder is not None
    return encoder


def write_classifier(
    directory: Path, encoder: Path, kind: str, **config: Any
) -> transformers.PreTrainedModel:
    """Write a random model with a head, and the encoder's tokenizer.

    kind: "SequenceClassification" or "QuestionAnswering".
    """
    settings = transformers.AutoConfig.from_pretrained(encoder, **config)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = getattr(transformers, f"AutoModelFor{kind}").from_config(settings)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(directory)
    transformers.AutoTokenizer.from_pretrained(encoder).save_pretrained(directory)
    return model.eval()


def inputs_of(model: Any, tokenizer: Any, first: str, second: str) -> dict[str, Any]:
    """Encode a pair as transformers does. An empty text is a text, too."""
    settings = {"return_tensors": "pt", "truncation": False, "return_token_type_ids": True}
    inputs = dict(tokenizer([[first, second]], **settings))
    if getattr(model.config, "type_vocab_size", 1) < 2:
        inputs.pop("token_type_ids", None)
    return inputs


@pytest.fixture(scope="module")
def nlp(bert_dir: Path) -> Language:
    return build(bert_dir)


@pytest.fixture(scope="module")
def qa(bert_dir: Path) -> Language:
    return build(bert_dir, "distil_qa")


def texts_of(windows: Sequence[Any]) -> list[list[int]]:
    return [window.tolist() for window in windows]
