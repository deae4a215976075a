"""What `distil` measures: seconds of each side in turns, and the hardware's fastest products."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass

import torch

from benchmarks.distillation_step.rows import Kind
from benchmarks.distillation_step.sides import Positions, Side
from benchmarks.pipeline_distillation.speed import Measured, now
from spacy_distil.engines.onednn import is_faster, use_onednn

# Side of the square matrices whose products measure a GPU, and how many of them at a time.
GPU_SIDE, GPU_PRODUCTS = 4096, 50


class Matmul:
    """Products of matrices as fast as the hardware makes them: on a GPU of large squares, on a CPU
    of the shapes of a layer, by the fastest library.

    positions, width: of the layer's input.
    """

    def __init__(self, kind: Kind, *, bf16: bool, width: int, positions: int) -> None:
        dtype = torch.bfloat16 if bf16 else torch.float32
        device = torch.device("cuda" if kind == "gpu" else "cpu")
        n, shapes = positions, [*[(width, width)] * 4, (width, 4 * width), (4 * width, width)]
        if kind == "gpu":
            n, shapes = GPU_SIDE, [(GPU_SIDE, GPU_SIDE)] * GPU_PRODUCTS
        self.flops = sum(2.0 * n * n_in * n_out for n_in, n_out in shapes)
        self.inputs = {n_in: torch.randn(n, n_in, device=device, dtype=dtype) for n_in, _ in shapes}
        layers = [
            torch.nn.Linear(*shape, bias=False, device=device, dtype=dtype) for shape in set(shapes)
        ]
        by_shape = {(layer.in_features, layer.out_features): layer for layer in layers}
        self.libraries = [[by_shape[shape] for shape in shapes]]
        if is_faster(device):
            other = deepcopy(self.libraries[0])
            for layer in set(other):
                use_onednn(layer)
            self.libraries.append(other)

    def rate(self, trials: int = 3) -> float:
        """The best of some trials, in operations per second."""
        seconds = []
        with torch.inference_mode():
            for layers in self.libraries * trials:
                started = now()
                for layer in layers:
                    layer(self.inputs[layer.in_features])
                seconds.append(now() - started)
        return self.flops / min(seconds)


@dataclass(frozen=True)
class Found:
    """measured: pieces of text are its words.
    positions: of all rounds, by side.
    lengths: by side, see `Side`.
    matmul: the fastest products of each round, in operations per second.
    """

    measured: Measured
    positions: dict[str, Positions]
    lengths: dict[str, list[int]]
    matmul: list[float]


def measure(
    sides: Mapping[str, Side],
    n_pieces: int,
    rate: Callable[[], float],
    rounds: int,
    *,
    log: Callable[[str], None],
) -> Found:
    """Time each side's way through the text in each round; a round before the first warms up. Every
    second round goes backwards.

    n_pieces: of the text. rate: of products of matrices.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    positions = {name: Positions(0, 0) for name in sides}
    rates = []
    for turn in range(rounds + 1):
        log(f"round {turn} of {rounds}" if turn else "warm-up")
        found = rate()
        if turn:
            rates.append(found)
        for name in list(sides)[:: -1 if turn % 2 else 1]:
            gc.collect()
            started = now()
            gone = sides[name].go(turn)
            if turn:
                seconds[name].append(now() - started)
                before = positions[name]
                positions[name] = Positions(
                    before.computed + gone.computed, before.real + gone.real
                )
    lengths = {name: side.lengths for name, side in sides.items()}
    return Found(Measured(seconds, [n_pieces] * rounds), positions, lengths, rates)
