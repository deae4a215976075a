"""Which students are possible: shapes of an encoder, and spaCy's CNN."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import product
from math import inf
from typing import Any, Literal

from confection import Config

from spacy_distil.distillation.pipeline.config import SECTION as DISTILLATION
from spacy_distil.distillation.pipeline.config import SHAPE_SETTINGS
from spacy_distil.fitting.settings import SECTION, FitSettings
from spacy_distil.students.shapes import Shape

FACTORY, LISTENER = "distil_transformer", "spacy-distil.Listener.v1"
VECTORS = "spacy-distil.VectorsHead.v1"
# A larger vocabulary is one of many languages: most of its pieces are never used in one.
LARGE_VOCABULARY = 60_000
SMALL_VOCABULARY = 8_000
CNN_WIDTHS = (64, 96, 128)
# Directory of the trainings, in the one of a search.
CANDIDATES = "candidates"


@dataclass(frozen=True)
class Candidate:
    """A student that could be trained.

    layers, ffn, width, embedding_size, share_layers: of its encoder, as in [distillation.student].
        None keeps the number of the encoder that it starts from.
    pieces: in the vocabulary; None for all.
    embedding_bits: of its embeddings, when it is quantized. It does not change the training.
    cnn: width of the CNN; None for an encoder.
    from_teacher: whether the encoder starts from the teacher's layers. If not, it is the lowest
        layers of the one that the config names, which can be cut in no other way.
    """

    layers: int | None = None
    ffn: int | None = None
    width: int | None = None
    embedding_size: int | None = None
    share_layers: bool = False
    pieces: int | None = None
    embedding_bits: int = 8
    cnn: int | None = None
    from_teacher: bool = True

    @property
    def training(self) -> str:
        """Name of its training."""
        if self.cnn is not None:
            return f"cnn-{self.cnn}"
        numbers = {"layers": self.layers, "width": self.width, "ffn": self.ffn}
        numbers |= {"embeddings": self.embedding_size, "pieces": self.pieces}
        parts = [f"{name}-{n}" for name, n in numbers.items() if n is not None]
        return "-".join([*parts, *(["shared"] if self.share_layers else [])])

    @property
    def name(self) -> str:
        bits = "" if self.embedding_bits == 8 else f"-{self.embedding_bits}bits"
        return f"{self.training}{bits}"

    def contains(self, other: Candidate) -> bool:
        """Whether another student is smaller in one respect, and larger in none."""
        own, others = self._sizes(), other._sizes()
        return own != others and all(a >= b for a, b in zip(own, others, strict=True))

    def _sizes(self) -> tuple[float, ...]:
        whole = [self.layers, self.ffn, self.width, self.embedding_size, self.pieces]
        sizes = [inf if size is None else size for size in whole]
        if self.cnn is not None:  # no encoder contains it, and it contains none
            return (*[0.0 for _ in sizes], 0.0, self.cnn)
        return (*sizes, 0.0 if self.share_layers else 1.0, 0.0)

    def to_dict(self) -> dict[str, Any]:
        """All settings for JSON."""
        return asdict(self)

    def configure(self, config: Config, cache: str) -> Config:
        """Make the config of its training.

        config: of the student, with sections [distillation] and [fit]. It is not changed.
        cache: directory of the teacher's outputs, which all trainings share.
        """
        own = config.copy()
        own.pop(SECTION, None)
        section = own[DISTILLATION]
        section["cache"] = cache
        student = section["student"]
        name = encoder_of(own)
        if self.cnn is not None or not self.from_teacher:
            student.update(start="config", n_layers=None, layers="first")
            for setting in SHAPE_SETTINGS:
                student.pop(setting, None)
        else:
            student.update(
                start="teacher",
                layers="first",
                n_layers=self.layers,
                ffn=self.ffn,
                width=self.width,
                heads=None,
                embedding_size=self.embedding_size,
                share_layers=self.share_layers,
            )
        if self.cnn is not None:
            student.pop("vocabulary", None)
            _replace_encoder(own, self.cnn)
        elif not self.from_teacher and name is not None:
            own["components"][name]["model"]["layer"] = self.layers
        if self.pieces is not None:
            student["vocabulary"] = {"size": self.pieces}
        return own


@dataclass(frozen=True)
class Start:
    """The encoder that students start from.

    shape: its shape.
    n_pieces: in its vocabulary.
    is_teacher: whether it is the teacher's.
    """

    shape: Shape
    n_pieces: int
    is_teacher: bool = True


def propose(start: Start | None, settings: FitSettings, *, has_cnn: bool) -> list[Candidate]:
    """List the students to try.

    start: None if the config has no encoder of its own, or several.
    has_cnn: whether a CNN can learn what the config wants.
    """
    found: list[Candidate] = []
    if start is not None:
        bits = settings.embedding_bits or _choose_bits(settings)
        pieces = _choose_pieces(start.n_pieces, settings)
        layers = settings.layers
        if layers is None:
            layers = _choose_layers(start.shape.layers)
        if start.is_teacher:
            cuts = product(settings.embedding_size or [None], settings.share_layers or [False])
            found = [
                Candidate(n, ffn, width, size, shared, own_pieces, own_bits)
                for (size, shared), n in product(cuts, layers)
                for (ffn, width), own_pieces, own_bits in product(
                    _choose_widths(start.shape, settings), pieces, bits
                )
            ]
        else:
            found = [
                Candidate(n, pieces=own_pieces, embedding_bits=own_bits, from_teacher=False)
                for n, own_pieces, own_bits in product(layers, pieces, bits)
            ]
    if has_cnn:
        widths = CNN_WIDTHS if settings.cnn is None else settings.cnn
        found += [Candidate(cnn=width) for width in widths]
    return found


def _choose_bits(settings: FitSettings) -> list[Literal[8, 4]]:
    """Choose bits of the embeddings. The first ones that fit the budget are taken."""
    if settings.minimize == "size_mb":
        return [4, 8]
    return [8, 4] if settings.counts_size else [8]


def _choose_pieces(n_pieces: int, settings: FitSettings) -> list[int | None]:
    """Choose sizes of the vocabulary. None stands for all pieces."""
    sizes = settings.pieces
    if sizes is None:
        sizes = [SMALL_VOCABULARY] if n_pieces > LARGE_VOCABULARY else [None]
        if settings.counts_size:
            sizes = [*sizes, SMALL_VOCABULARY]
    return [*dict.fromkeys(None if size and size >= n_pieces else size for size in sizes)]


def _choose_widths(shape: Shape, settings: FitSettings) -> list[tuple[int | None, int | None]]:
    """Choose numbers of feed-forward neurons, with the width of the hidden states.

    RETURNS: [(ffn, width)]. None stands for the teacher's number.
    """
    pairs = list(product(settings.ffn or [1.0, 0.5], settings.width or [1.0, 0.5]))
    if settings.ffn is None and settings.width is None:
        pairs = [(1.0, 1.0), (0.5, 1.0), (1.0, 0.5)]
    found: list[tuple[int | None, int | None]] = []
    for ffn_share, width_share in pairs:
        n_heads = max(1, round(width_share * shape.heads))
        ffn = max(1, round(ffn_share * shape.ffn * n_heads / shape.heads))
        width = n_heads * shape.head_size
        found.append((None if ffn == shape.ffn else ffn, None if width == shape.width else width))
    return [*dict.fromkeys(found)]


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
            if block.get("@architectures") == VECTORS:
                block["pooling"] = "tokens"  # a CNN makes no vector of the doc
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
