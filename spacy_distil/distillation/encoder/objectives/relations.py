"""Relations: how similar pieces are in the self-attention of a layer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from math import gcd
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from spacy_distil.distillation.encoder.objectives.base import Loss, Objective, Outputs
from spacy_distil.distillation.encoder.objectives.chunked import chunk_size, chunked_sum
from spacy_distil.distillation.encoder.objectives.kl_divergence import kl_divergence
from spacy_distil.distillation.encoder.objectives.registry import at_least, distil_objectives
from spacy_distil.errors import ConfigError
from spacy_distil.students.layer_map import layer_map

if TYPE_CHECKING:
    from transformers import PretrainedConfig

Kind = Literal["queries", "keys", "values"]
# On a CPU, larger chunks are not faster.
CPU_CHUNK_BLOCKS = 8
KINDS: tuple[Kind, ...] = ("queries", "keys", "values")


class Relations(Objective):
    """KL(teacher || student) of the self-attention relations of pairs of layers, over all pieces
    except padding, averaged over kinds, relation heads and pairs (MiniLMv2; Wang et al., 2021).

    The relations of a piece are a distribution over all pieces of its block: the softmax of the
    scaled products of its query with their queries, its key with their keys, or its value with
    their values. Queries, keys and values are split into the same number of relation heads in both
    models. Attention heads and widths may therefore differ.

    weight: factor in the summed loss.
    layers: the pairs, see `layer_map`. Layer 0 has no attention.
    heads: number of relation heads. `None` is the number of the teacher's attention heads, or the
        largest number below it that divides both widths.
    relations: the kinds. Each counts the same.
    chunk_blocks: blocks whose relations are in memory at once; `None` chooses by the device.
    """

    def __init__(
        self,
        weight: float | Iterable[float] = 1.0,
        layers: str | Sequence[Sequence[int]] = "last",
        heads: int | None = None,
        relations: Sequence[str] = KINDS,
        chunk_blocks: int | None = None,
    ) -> None:
        super().__init__(weight)
        self.layers = layers
        self.heads = None if heads is None else at_least("heads", heads, 1)
        self.relations = list(relations)
        if not self.relations or len({*self.relations}) < len(self.relations):
            raise ConfigError(
                f"relations = {self.relations}: must name one or more of {', '.join(KINDS)}, each "
                f"once"
            )
        self.chunk_blocks = (
            None if chunk_blocks is None else at_least("chunk_blocks", chunk_blocks, 1)
        )

    def prepare(self, teacher: PretrainedConfig, student: PretrainedConfig) -> None:
        self.attention_pairs = layer_map(
            self.layers,
            student.num_hidden_layers,
            teacher.num_hidden_layers,
            name="layers",
            lowest=1,
        )
        common = gcd(teacher.hidden_size, student.hidden_size)
        if self.heads is None:
            candidates = range(int(teacher.num_attention_heads), 0, -1)
            self.heads = next(n for n in candidates if common % n == 0)
        _check_heads(self.heads, teacher.hidden_size, student.hidden_size)

    def forward(self, outputs: Outputs) -> Loss:
        batch, heads = outputs.batch, self.heads
        assert heads is not None
        real = [] if batch.attention is None else [batch.attention.bool()]

        def divergence(prediction: Tensor, target: Tensor, *real: Tensor) -> Tensor:
            with torch.no_grad():
                target_scores = _scores(target, heads)
            padding = ~(real[0][:, None, :, None] & real[0][:, None, None, :]) if real else None
            return kl_divergence(target_scores, _scores(prediction, heads), padding)

        n_blocks = self.chunk_blocks or chunk_size(
            batch.inputs.device,
            bytes_per_row=4 * heads * batch.inputs.shape[1] ** 2,
            on_cpu=CPU_CHUNK_BLOCKS,
        )
        losses = []
        for student_layer, teacher_layer in self.attention_pairs:
            for kind in self.relations:
                prediction = getattr(outputs.student.attention[student_layer], kind)
                target = getattr(outputs.target.attention[teacher_layer], kind)
                losses.append(
                    chunked_sum(divergence, [prediction], constant=[target, *real], size=n_blocks)
                )
        return Loss(torch.stack(losses).mean() / heads, batch.n_real)


def _scores(vectors: Tensor, heads: int) -> Tensor:
    """Multiply the vectors of all pairs of positions, for each relation head, and scale them.

    vectors: (blocks, length, width).
    RETURNS: (blocks, heads, length, length).
    """
    split = vectors.unflatten(-1, (heads, -1)).transpose(1, 2).contiguous()
    return (split * split.shape[-1] ** -0.5) @ split.transpose(-1, -2)


def _check_heads(heads: int, teacher_width: int, student_width: int) -> None:
    """Raise `ConfigError` unless the number of relation heads divides both widths."""
    common = gcd(teacher_width, student_width)
    if common % heads:
        divisors = [n for n in range(1, common + 1) if common % n == 0]
        raise ConfigError(
            f"heads = {heads}: must divide the widths of both models, {teacher_width} of the "
            f"teacher and {student_width} of the student. These do: "
            f"{', '.join(map(str, divisors))}"
        )


@distil_objectives.register("spacy-distil.Relations.v1")
def make_relations(
    weight: float | Iterator[float] = 1.0,
    layers: Literal["last", "even"] | list[list[int]] = "last",
    heads: int | None = None,
    relations: list[Kind] = list(KINDS),  # noqa: B006
    chunk_blocks: int | None = None,
) -> Relations:
    """Make the objective from a config. See `Relations` for the arguments."""
    return Relations(weight, layers, heads, relations, chunk_blocks)
