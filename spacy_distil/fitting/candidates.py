"""Which students are possible: shapes of the teacher's encoder, and spaCy's CNN."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

from confection import Config

from spacy_distil.distillation.pipeline.config import SECTION as DISTILLATION
from spacy_distil.fitting.settings import SECTION, FitSettings
from spacy_distil.students.shapes import Shape

FACTORY, LISTENER = "distil_transformer", "spacy-distil.Listener.v1"
# A larger vocabulary is one of many languages: most of its pieces are never used in one.
LARGE_VOCABULARY = 60_000
SMALL_VOCABULARY = 8_000
CNN_WIDTH = 96
# Directory of the trainings, in the one of a search.
CANDIDATES = "candidates"


@dataclass(frozen=True)
class Candidate:
    """A student that could be trained.

    layers, ffn: of its encoder; None for a CNN, or for the encoder that the config names.
    pieces: in the vocabulary; None for all.
    embedding_bits: of its embeddings, when it is quantized. It does not change the training.
    cnn: width of the CNN; None for an encoder.
    """

    layers: int | None = None
    ffn: int | None = None
    pieces: int | None = None
    embedding_bits: int = 8
    cnn: int | None = None

    @property
    def training(self) -> str:
        """Name of its training."""
        if self.cnn is not None:
            return f"cnn-{self.cnn}"
        parts = [f"layers-{self.layers}" if self.layers else "encoder"]
        parts += [f"ffn-{self.ffn}"] if self.ffn else []
        parts += [f"pieces-{self.pieces}"] if self.pieces else []
        return "-".join(parts)

    @property
    def name(self) -> str:
        bits = "" if self.embedding_bits == 8 else f"-{self.embedding_bits}bits"
        return f"{self.training}{bits}"

    def to_dict(self) -> dict[str, Any]:
        """All settings for JSON."""
        return asdict(self)

    def configure(self, config: Config, cache: str) -> Config:
        """Make the config of its training.

        config: of the teacher's student, with sections [distillation] and [fit]. It is not changed.
        cache: directory of the teacher's outputs, which all trainings share.
        """
        own = config.copy()
        own.pop(SECTION, None)
        section = own[DISTILLATION]
        section["cache"] = cache
        student = section["student"]
        if self.cnn is not None:
            _replace_encoder(own, self.cnn)
            student.update(start="config", n_layers=None, layers="first")
            for name in ("heads", "ffn", "width", "share_layers", "embedding_size", "vocabulary"):
                student.pop(name, None)
        elif self.layers is not None:
            student.update(start="teacher", layers="first", n_layers=self.layers, ffn=self.ffn)
        if self.pieces is not None:
            student["vocabulary"] = {"size": self.pieces}
        return own


def propose(
    shape: Shape | None, n_pieces: int, settings: FitSettings, *, has_cnn: bool
) -> list[Candidate]:
    """List the students to try, without one that is as large as the teacher in all respects.

    shape: of the teacher's encoder; None if students cannot start from it.
    n_pieces: in its vocabulary.
    has_cnn: whether a CNN can learn what the config wants.
    """
    bits = settings.embedding_bits or ([8, 4] if settings.size_mb is not None else [8])
    found: list[Candidate] = []
    sizes = settings.pieces
    if sizes is None:
        sizes = [SMALL_VOCABULARY] if n_pieces > LARGE_VOCABULARY else [None]
        if settings.size_mb is not None and n_pieces > SMALL_VOCABULARY:
            sizes = [*dict.fromkeys([*sizes, SMALL_VOCABULARY])]
    sizes = [None if size is not None and size >= n_pieces else size for size in sizes]
    sizes = [*dict.fromkeys(sizes)]
    if shape is None:
        found += [Candidate(pieces=size, embedding_bits=b) for size, b in product(sizes, bits)]
    else:
        layers = settings.layers or _choose_layers(shape.layers)
        shares = settings.ffn or [1.0, 0.5]
        for n, share, size, b in product(layers, shares, sizes, bits):
            ffn = None if share == 1 else max(1, round(share * shape.ffn))
            found.append(Candidate(n, ffn, size, b))
    if has_cnn:
        widths = [CNN_WIDTH] if settings.cnn is None else settings.cnn
        found += [Candidate(cnn=width) for width in widths]
    return found


def _choose_layers(most: int) -> list[int]:
    """Choose numbers of layers: all small ones, and some of the larger ones."""
    return [n for n in (1, 2, 3, 4, 6, 8, 12, 18, 24) if n <= most]


def encoder_of(config: Config) -> str | None:
    """Return the name of the encoder in a config; None if there is none, or several."""
    components = config.get("components", {})
    names = [name for name, own in components.items() if own.get("factory") == FACTORY]
    return names[0] if len(names) == 1 else None


def _replace_encoder(config: Config, width: int) -> None:
    """Put spaCy's CNN in the place of the encoder, and its listeners in the place of ours."""
    name = encoder_of(config)
    assert name is not None
    config["components"][name] = {
        "factory": "tok2vec",
        "model": {
            "@architectures": "spacy.HashEmbedCNN.v2",
            "pretrained_vectors": None,
            "width": width,
            "depth": 4,
            "embed_size": 2000,
            "window_size": 1,
            "maxout_pieces": 3,
            "subword_features": True,
        },
    }
    for own in config["components"].values():
        for block in _blocks(own):
            if block.get("@architectures") == LISTENER:
                upstream = block.get("upstream", "*")
                block.clear()
                block |= {
                    "@architectures": "spacy.Tok2VecListener.v1",
                    "width": width,
                    "upstream": upstream,
                }


def _blocks(section: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for value in section.values():
        if isinstance(value, dict):
            yield value
            yield from _blocks(value)
