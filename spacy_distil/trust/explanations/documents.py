"""Documents on their way to the pipe that is explained."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from spacy.language import Language
from spacy.pipeline.tok2vec import Tok2VecListener
from spacy.tokens import Doc

from spacy_distil.component.pipe import DistilTransformerPipe
from spacy_distil.component.shim import EncoderShim, get_encoder
from spacy_distil.errors import ConfigError
from spacy_distil.trust.explanations.head import encoder_nodes


def run_before(
    nlp: Language, name: str, docs: Iterable[Doc], *, batch_size: int = 1
) -> Iterator[Doc]:
    """Process docs with all pipes before one.

    Raises ConfigError if a pipe merges or splits tokens.
    """
    later = nlp.pipe_names[nlp.pipe_names.index(name) :]
    sizes: list[int] = []

    def count() -> Iterator[Doc]:
        for doc in docs:
            sizes.append(len(doc))
            yield doc

    for i, doc in enumerate(nlp.pipe(count(), disable=later, batch_size=batch_size)):
        if len(doc) != sizes[i]:
            raise ConfigError(
                f"A component before {name!r} merges or splits tokens, so they cannot be told "
                "apart. Disable it, or place it behind."
            )
        yield doc


def find_encoder(nlp: Language, name: str) -> EncoderShim | None:
    """Return the encoder of a pipe, shared or inside of it; None if it has none of ours, or others
    beside it.
    """
    owners = {
        id(listener): pipe
        for _, pipe in nlp.pipeline
        if isinstance(pipe, DistilTransformerPipe)
        for listener in pipe.listener_map.get(name, [])
    }
    own: Any = nlp.get_pipe(name)
    found: set[EncoderShim | None] = set()
    for node in encoder_nodes(own.model):
        if not isinstance(node, Tok2VecListener):
            found.add(get_encoder(node))
        else:
            owner = owners.get(id(node))
            found.add(None if owner is None else get_encoder(owner.model))
    return found.pop() if len(found) == 1 else None


def find_visible(doc: Doc, encoder: EncoderShim | None) -> np.ndarray:
    """Find the tokens that a pipe can see, (n_tokens,) bool.

    These are tokens with pieces. Without an encoder of ours, they are tokens with a character that
    is neither white space nor control.
    """
    if encoder is not None:
        encoded, _ = encoder.prepare([doc])
        has_pieces: np.ndarray = encoded.last > encoded.first
        return has_pieces & ~np.array([token.is_space for token in doc], dtype=bool)
    return np.array(
        [any(c.isprintable() and not c.isspace() for c in token.text) for token in doc],
        dtype=bool,
    )
