"""The shape of an encoder, and what a student's may be."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING

from spacy_distil.errors import ConfigError
from spacy_distil.students.families import CUTTABLE, ffn_setting
from spacy_distil.students.layer_choice import Layers, choose_layers

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@dataclass(frozen=True)
class Shape:
    """The shape of an encoder. All layers are alike.

    layers: how many.
    heads: attention heads of a layer; their outputs side by side are as wide as the hidden states.
    ffn: feed-forward neurons of a layer.
    width: of the hidden states.
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
    """The shape of a student, next to that of its teacher.

    layers: of the teacher, 0 being the lowest, in ascending order.
    heads, ffn, width: see `Shape`.
    teacher: the teacher's shape.
    """

    layers: tuple[int, ...]
    heads: int
    ffn: int
    width: int
    teacher: Shape

    @property
    def shape(self) -> Shape:
        return Shape(len(self.layers), self.heads, self.ffn, self.width)

    @property
    def cuts(self) -> list[str]:
        """The settings by which parts of layers are left out: some of "heads", "ffn", "width"."""
        names = ("heads", "ffn", "width")
        return [name for name in names if getattr(self, name) < getattr(self.teacher, name)]


def shape_of(config: PretrainedConfig) -> Shape:
    """The shape that a config of transformers describes."""
    return Shape(
        layers=int(config.num_hidden_layers),
        heads=int(config.num_attention_heads),
        ffn=int(getattr(config, ffn_setting(config.model_type))),
        width=int(config.hidden_size),
    )


def student_config(teacher: PretrainedConfig, shape: StudentShape) -> PretrainedConfig:
    """The teacher's config, changed to describe a student of that shape."""
    config = deepcopy(teacher)
    # ELECTRA's embeddings are hidden states where they are as wide.
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
    """The groups that some layers of an ALBERT share their weights with. 0 is the lowest."""
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
    prefix: str = "student.",
) -> StudentShape:
    """The shape of a student, or a `ConfigError` that says which there can be.

    teacher: config of the teacher.
    layers, n_layers: see `choose_layers`.
    heads: of each layer; `None` keeps the teacher's size of a head. With fewer heads than that
        makes, each is larger: it starts as the teacher's and has room to learn.
    ffn: feed-forward neurons of each layer; `None` is as many as the teacher's.
    width: of the hidden states; `None` is the teacher's.
    prefix: of these settings where the user wrote them, for errors: "student." or "--".
    """
    whole = shape_of(teacher)
    chosen = tuple(choose_layers(layers, n_layers, available=whole.layers, prefix=prefix))
    for name, value in (("heads", heads), ("ffn", ffn), ("width", width)):
        most = getattr(whole, name)
        if value is not None and not 1 <= value <= most:
            raise ConfigError(f"{prefix}{name} = {value}: must be from 1 to the teacher's {most}")
    new_width = whole.width if width is None else width
    fitting = [n for n in range(1, whole.heads + 1) if _fits(n, new_width, whole)]
    n_heads = new_width // whole.head_size if heads is None else heads
    if n_heads not in fitting or (heads is None and new_width % whole.head_size):
        raise ConfigError(_misfit(heads, width, whole, fitting, prefix))
    shape = StudentShape(chosen, n_heads, whole.ffn if ffn is None else ffn, new_width, whole)
    _check_family(teacher, shape, prefix)
    return shape


def _fits(heads: int, width: int, teacher: Shape) -> bool:
    return width % heads == 0 and width // heads >= teacher.head_size


def _misfit(
    heads: int | None, width: int | None, teacher: Shape, fitting: Sequence[int], prefix: str
) -> str:
    """Why a number of heads cannot be, and which can."""
    total = teacher.width if width is None else width
    place = f"a width of {total}" + ("" if width is None else f" ({prefix}width)")
    if not fitting:
        return (
            f"{prefix}width = {width}: must be at least {teacher.head_size}, the size of one of "
            f"the teacher's heads"
        )
    numbers = ", ".join(map(str, fitting))
    if heads is None:
        return (
            f"{prefix}width = {width}: it is no multiple of {teacher.head_size}, the size of the "
            f"teacher's heads. Set {prefix}heads to one of {numbers}, which make larger heads, or "
            f"choose another width"
        )
    if total % heads:
        reason = f"{place} is no multiple of it"
    else:
        reason = (
            f"heads of {total // heads} in {place} are smaller than the teacher's of "
            f"{teacher.head_size}, which would not fit into them"
        )
    return f"{prefix}heads = {heads}: {reason}. With this width it can be one of {numbers}"


def _check_family(config: PretrainedConfig, shape: StudentShape, prefix: str) -> None:
    family = config.model_type
    if shape.cuts and family not in CUTTABLE:
        names = " and ".join(f"{prefix}{name}" for name in shape.cuts)
        raise ConfigError(
            f"{names}: layers of a teacher of type {family!r} can only be left out or kept whole: "
            f"do without {names}. Heads, neurons and width can be cut in: {', '.join(CUTTABLE)}"
        )
    positions = getattr(config, "position_embedding_type", "absolute")
    size, kept = shape.shape.head_size, shape.teacher.head_size
    if positions != "absolute" and size != kept:
        raise ConfigError(
            f"{prefix}heads = {shape.heads}: makes heads of {size}, but the teacher's position "
            f"embeddings are {positions!r} and belong to heads of {kept}: the student's must keep "
            f"this size. Leave {prefix}heads out, and choose a multiple of {kept} as the width"
        )
    embeddings = getattr(config, "embedding_size", config.hidden_size)
    if embeddings == shape.width < config.hidden_size:
        raise ConfigError(
            f"{prefix}width = {shape.width}: the teacher's embeddings have this width and are "
            f"projected to {config.hidden_size}; a model of type {family!r} in which both are "
            f"alike has no such projection. Choose another width"
        )
    if family == "albert":
        groups = albert_groups(config, shape.layers)
        numbers = list(dict.fromkeys(groups))
        per_group = len(groups) / len(numbers)
        spread = [numbers[int(i / per_group)] for i in range(len(groups))]  # as ALBERT does it
        if groups != spread:
            raise ConfigError(
                f"{prefix}layers = {list(shape.layers)}: they share the weights of the teacher's "
                f"groups {groups}, but an ALBERT of as many layers and groups has {spread}. Choose "
                f"other layers"
            )
