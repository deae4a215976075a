"""Timing of all sides in turns, and of the fastest matrix products."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass

import torch

from benchmarks.common.rounds import Rounds, describe_round, in_turn, now
from benchmarks.distillation_step.rows import Device
from benchmarks.distillation_step.sides import PositionCounts, Side
from spacy_distil.engines.onednn import is_faster, use_onednn

# Size of the square matrices whose products measure a GPU, and the number of products at a time.
GPU_SIZE, GPU_PRODUCTS = 4096, 50


class MatrixProducts:
    """Matrix products that run as fast as the hardware can: of large squares on a GPU, and of the
    shapes in a layer, with the fastest library, on a CPU.
    """

    def __init__(self, device: Device, *, bf16: bool, width: int, positions: int) -> None:
        """width, positions: shape of the layer's input."""
        dtype = torch.bfloat16 if bf16 else torch.float32
        torch_device = torch.device("cuda" if device == "gpu" else "cpu")
        n, shapes = positions, [*[(width, width)] * 4, (width, 4 * width), (4 * width, width)]
        if device == "gpu":
            n, shapes = GPU_SIZE, [(GPU_SIZE, GPU_SIZE)] * GPU_PRODUCTS
        self.flops = sum(2.0 * n * n_in * n_out for n_in, n_out in shapes)
        self.inputs = {
            n_in: torch.randn(n, n_in, device=torch_device, dtype=dtype) for n_in, _ in shapes
        }
        layers = [
            torch.nn.Linear(*shape, bias=False, device=torch_device, dtype=dtype)
            for shape in set(shapes)
        ]
        by_shape = {(layer.in_features, layer.out_features): layer for layer in layers}
        self.libraries = [[by_shape[shape] for shape in shapes]]
        if is_faster(torch_device):
            on_onednn = deepcopy(self.libraries[0])
            for layer in set(on_onednn):
                use_onednn(layer)
            self.libraries.append(on_onednn)

    def rate(self, trials: int = 3) -> float:
        """The best rate of several trials, in operations per second."""
        seconds = []
        with torch.inference_mode():
            for layers in self.libraries * trials:
                started = now()
                for layer in layers:
                    layer(self.inputs[layer.in_features])
                seconds.append(now() - started)
        return self.flops / min(seconds)


@dataclass(frozen=True)
class StepTimings:
    """The measurements of all sides.

    rounds: seconds; its words are the pieces of text.
    positions: sum over all rounds, by side.
    lengths: lengths of the sequences, by side, see `Side`.
    matmul: rate of the fastest matrix products in each round, in operations per second.
    """

    rounds: Rounds
    positions: dict[str, PositionCounts]
    lengths: dict[str, list[int]]
    matmul: list[float]


def measure(
    sides: Mapping[str, Side],
    n_pieces: int,
    rate: Callable[[], float],
    rounds: int,
    *,
    log: Callable[[str], None],
) -> StepTimings:
    """Time the pass of each side through the text in each round, after a warm-up.

    n_pieces: number of pieces in the text.
    rate: measures the rate of matrix products.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    positions = {name: PositionCounts(0, 0) for name in sides}
    rates = []
    for turn in range(rounds + 1):
        log(describe_round(turn, rounds))
        products_per_second = rate()
        if turn:
            rates.append(products_per_second)
        for name in in_turn(sides, turn):
            gc.collect()
            started = now()
            processed = sides[name].process(turn)
            if turn:
                seconds[name].append(now() - started)
                positions[name] = positions[name].plus(processed)
    lengths = {name: side.lengths for name, side in sides.items()}
    return StepTimings(Rounds(seconds, [n_pieces] * rounds), positions, lengths, rates)
