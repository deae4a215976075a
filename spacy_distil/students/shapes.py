"""The shapes of encoders, and the shapes that a student can have."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING

from spacy_distil.errors import ConfigError
from spacy_distil.students.families import BERT_FORM, CUTTABLE, ffn_setting
from spacy_distil.students.layer_choice import Layers, choose_layers

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@dataclass(frozen=True)
class Shape:
    """The shape of an encoder. All of its layers have the same shape.

    layers: number of layers.
    heads: attention heads per layer. Their outputs side by side are as wide as the hidden states.
    ffn: feed-forward neurons per layer.
    width: width of the hidden states.
    """

    layers: int
    heads: int
    ffn: int
    width: int

    @property
    def head_size(self) -> int:
        return self.width // self.heads


@dataclass(frozen=True)
class StudentShape:
    """The shape of a student, and of its teacher.

    layers: the teacher's layers that it consists of, in ascending order; 0 is the lowest.
    heads, ffn, width: see `Shape`.
    teacher: the teacher's shape.
    share_layers: whether all layers share the weights of one.
    embedding_size: width of factorized embeddings; `None` keeps them whole.
    """

    layers: tuple[int, ...]
    heads: int
    ffn: int
    width: int
    teacher: Shape
    share_layers: bool = False
    embedding_size: int | None = None

    @property
    def is_albert(self) -> bool:
        """Whether a student of a teacher of BERT's form becomes a model of ALBERT's."""
        return self.share_layers or self.embedding_size is not None

    @property
    def shape(self) -> Shape:
        return Shape(len(self.layers), self.heads, self.ffn, self.width)

    @property
    def cuts(self) -> list[str]:
        """The settings that drop units of the teacher: a selection of "heads", "ffn", "width"."""
        names = ("heads", "ffn", "width")
        return [name for name in names if getattr(self, name) < getattr(self.teacher, name)]


def shape_of(config: PretrainedConfig) -> Shape:
    """Read the shape of an encoder from its config."""
    return Shape(
        layers=int(config.num_hidden_layers),
        heads=int(config.num_attention_heads),
        ffn=int(getattr(config, ffn_setting(config.model_type))),
        width=int(config.hidden_size),
    )


def student_config(teacher: PretrainedConfig, shape: StudentShape) -> PretrainedConfig:
    """Make the config of a student of the teacher's family from its teacher's."""
    config = deepcopy(teacher)
    # ELECTRA has no projection if its embeddings are as wide as the hidden states.
    if getattr(teacher, "embedding_size", None) == shape.teacher.width:
        config.embedding_size = shape.width
    config.num_hidden_layers = len(shape.layers)
    config.num_attention_heads = shape.heads
    setattr(config, ffn_setting(teacher.model_type), shape.ffn)
    config.hidden_size = shape.width
    if teacher.model_type == "albert":
        config.num_hidden_groups = len(set(albert_groups(teacher, shape.layers)))
    return config


def albert_groups(config: PretrainedConfig, layers: Sequence[int]) -> list[int]:
    """Find the groups that layers of an ALBERT share their weights in. 0 is the lowest layer."""
    per_group = config.num_hidden_layers / config.num_hidden_groups
    return [int(layer / per_group) for layer in layers]


def choose_shape(
    teacher: PretrainedConfig,
    layers: Layers = "first",
    n_layers: int | None = None,
    *,
    heads: int | None = None,
    ffn: int | None = None,
    width: int | None = None,
    share_layers: bool = False,
    embedding_size: int | None = None,
    prefix: str = "student.",
) -> StudentShape:
    """Choose the shape of a student.

    teacher: config of the teacher.
    layers, n_layers: see `choose_layers`.
    heads: attention heads per layer; `None` keeps the teacher's head size. Fewer heads are larger:
        they start as the teacher's and have room to learn.
    ffn: feed-forward neurons per layer; `None` keeps the teacher's number.
    width: width of the hidden states; `None` keeps the teacher's.
    share_layers: whether all layers share the weights of one, as in ALBERT.
    embedding_size: width of ALBERT's factorized embeddings; `None` keeps them whole.
    prefix: of these settings as the user wrote them, for errors: "student." or "--".
    Raises ConfigError for an impossible shape. The message names possible ones.
    """
    full = shape_of(teacher)
    chosen = tuple(choose_layers(layers, n_layers, available=full.layers, prefix=prefix))
    for name, value in (("heads", heads), ("ffn", ffn), ("width", width)):
        most = getattr(full, name)
        if value is not None and not 1 <= value <= most:
            raise ConfigError(f"{prefix}{name} = {value}: must be from 1 to the teacher's {most}")
    new_width = full.width if width is None else width
    possible = [n for n in range(1, full.heads + 1) if _can_have(n, new_width, full)]
    n_heads = new_width // full.head_size if heads is None else heads
    if n_heads not in possible or (heads is None and new_width % full.head_size):
        raise ConfigError(_explain_misfit(heads, width, full, possible, prefix))
    shape = StudentShape(
        chosen,
        n_heads,
        full.ffn if ffn is None else ffn,
        new_width,
        full,
        share_layers=share_layers,
        embedding_size=embedding_size,
    )
    _check_family(teacher, shape, prefix)
    if shape.is_albert:
        _check_albert(teacher, shape, prefix)
    return shape


def _can_have(heads: int, width: int, teacher: Shape) -> bool:
    return width % heads == 0 and width // heads >= teacher.head_size


def _explain_misfit(
    heads: int | None, width: int | None, teacher: Shape, possible: Sequence[int], prefix: str
) -> str:
    """Say why a number of heads is impossible, and which numbers are possible."""
    total = teacher.width if width is None else width
    width_words = f"a width of {total}" + ("" if width is None else f" ({prefix}width)")
    if not possible:
        return (
            f"{prefix}width = {width}: must be at least {teacher.head_size}, the size of one of "
            f"the teacher's heads"
        )
    numbers = ", ".join(map(str, possible))
    if heads is None:
        return (
            f"{prefix}width = {width}: it is no multiple of {teacher.head_size}, the size of the "
            f"teacher's heads. Set {prefix}heads to one of {numbers}, which makes the heads "
            f"larger, or choose another width"
        )
    if total % heads:
        reason = f"{width_words} is no multiple of it"
    else:
        reason = (
            f"heads of {total // heads} in {width_words} are smaller than the teacher's of "
            f"{teacher.head_size}, which would not fit into them"
        )
    return f"{prefix}heads = {heads}: {reason}. With this width it can be one of {numbers}"


def _check_family(config: PretrainedConfig, shape: StudentShape, prefix: str) -> None:
    """Raise ConfigError for a shape that the teacher's family cannot have."""
    family = config.model_type
    if shape.cuts and family not in CUTTABLE:
        names = " and ".join(f"{prefix}{name}" for name in shape.cuts)
        raise ConfigError(
            f"{names}: layers of a teacher of type {family!r} can only be left out or kept whole. "
            f"Leave out {names}. Heads, neurons and width can be cut in: {', '.join(CUTTABLE)}"
        )
    positions = getattr(config, "position_embedding_type", "absolute")
    size, kept = shape.shape.head_size, shape.teacher.head_size
    if positions != "absolute" and size != kept:
        raise ConfigError(
            f"{prefix}heads = {shape.heads}: makes heads of {size}, but the teacher's position "
            f"embeddings are {positions!r} and belong to heads of {kept}: the student must keep "
            f"this size. Leave out {prefix}heads, and choose a multiple of {kept} as the width"
        )
    embeddings = getattr(config, "embedding_size", config.hidden_size)
    if embeddings == shape.width < config.hidden_size:
        raise ConfigError(
            f"{prefix}width = {shape.width}: the teacher's embeddings have this width and are "
            f"projected to {config.hidden_size}; a model of type {family!r} with equal widths has "
            f"no such projection. Choose another width"
        )
    if family == "albert":
        groups = albert_groups(config, shape.layers)
        numbers = list(dict.fromkeys(groups))
        per_group = len(groups) / len(numbers)
        # ALBERT's own distribution of layers over groups.
        spread = [numbers[int(i / per_group)] for i in range(len(groups))]
        if groups != spread:
            raise ConfigError(
                f"{prefix}layers = {list(shape.layers)}: they share the weights of the teacher's "
                f"groups {groups}, but an ALBERT with as many layers and groups has {spread}. "
                f"Choose other layers"
            )


def _check_albert(config: PretrainedConfig, shape: StudentShape, prefix: str) -> None:
    """Raise ConfigError for a teacher or a size that ALBERT's form is not possible with."""
    shared, size = "share_layers = true", f"embedding_size = {shape.embedding_size}"
    if prefix == "--":  # options of a command
        shared, size = "share-layers", size.replace("_", "-")
    settings = [f"{prefix}{shared}"] if shape.share_layers else []
    if shape.embedding_size is not None:
        settings.append(f"{prefix}{size}")
    positions = getattr(config, "position_embedding_type", "absolute")
    if config.model_type not in BERT_FORM or positions != "absolute":
        kind = f"of type {config.model_type!r}"
        if positions != "absolute":
            kind += f" with {positions!r} position embeddings"
        raise ConfigError(
            f"{' and '.join(settings)}: a student of a teacher {kind} cannot become an ALBERT. "
            f"Leave out these settings, or choose a teacher of one of these types, with absolute "
            f"positions: {', '.join(BERT_FORM)}"
        )
    whole = int(getattr(student_config(config, shape), "embedding_size", shape.width))
    if shape.embedding_size is not None and not 2 <= shape.embedding_size <= whole:
        raise ConfigError(
            f"{settings[-1]}: must be from 2 to {whole}, the width of the embeddings without it"
        )
