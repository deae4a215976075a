"""The results of the benchmark: the summary for the JSON file, the table, and the files."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.common.cells import rate, ratio, scaled, verdict
from benchmarks.common.results import Part, save_files
from benchmarks.distillation_step.rows import OURS, PLAIN, Device
from benchmarks.distillation_step.timing import StepTimings
from spacy_distil.report.layout import TIMES, count, measured_on, with_range
from spacy_distil.report.speed import Spread
from spacy_distil.tables import Table

STEM = "distillation_step"
NOT_YET = "not yet measured"


@dataclass(frozen=True)
class StepTarget:
    """The speed that ours must reach.

    ratio: smallest acceptable ratio to the pieces/s of the plain loop.
    utilization: smallest acceptable share of the hardware; `None` for any.
    """

    ratio: float
    utilization: float | None


TARGETS: dict[Device, StepTarget] = {
    "cpu": StepTarget(1.5, None),
    "gpu": StepTarget(3.0, 0.4),
}
COMMANDS: dict[Device, str] = {
    device: f"python -m benchmarks.{STEM} --{device} --output benchmarks/{STEM}/results"
    for device in TARGETS
}


def summarize(
    target: StepTarget, timings: StepTimings, useful: Callable[[int], float]
) -> dict[str, Any]:
    """Summarize timings for the JSON file. Utilization refers to the best matrix products.

    useful: operations for one piece, by the length of its sequence.
    """
    rounds, best = timings.rounds, max(timings.matmul)
    speeds = {name: rounds.words_per_second(name) for name in rounds.seconds}
    flops = {
        # The mean over pieces, not over sequences: longer sequences have more pieces.
        name: sum(length * useful(length) for length in lengths) / sum(lengths)
        for name, lengths in timings.lengths.items()
    }
    utilization = {name: scaled(speeds[name], flops[name] / best) for name in speeds}
    ratios = {
        name: rounds.ratio(name, PLAIN) for name in speeds if PLAIN in speeds and name != PLAIN
    }
    return {
        **asdict(rounds),
        "pieces_per_second": _as_dicts(speeds),
        "ratio": _as_dicts(ratios),
        "padding": {
            name: 1 - positions.real / positions.computed
            for name, positions in timings.positions.items()
        },
        "flops_per_piece": flops,
        "matmul_flops_per_second": timings.matmul,
        "utilization": _as_dicts(utilization),
        "aim": asdict(target),
        "met": {
            "ratio": ratios[OURS].median >= target.ratio if OURS in ratios else None,
            "utilization": (
                utilization[OURS].median >= target.utilization
                if OURS in utilization and target.utilization is not None
                else None
            ),
        },
    }


def _as_dicts(spreads: Mapping[str, Spread]) -> dict[str, dict[str, float]]:
    return {name: asdict(spread) for name, spread in spreads.items()}


def make_table(results: Mapping[Device, Any]) -> Table:
    """Make a table with a row per side and device. The verdicts are in the row of ours.

    results: from `summarize`; `None` for a device that was not measured.
    """
    rows = []
    for device, result in results.items():
        if result is None:
            rows.append([f"{device.upper()}: `{COMMANDS[device]}`", NOT_YET, *[""] * 7])
            continue
        for name in result["seconds"]:
            used = with_range(scaled(Spread(**result["utilization"][name]), 100), "{:.1f}")
            to_plain = result["ratio"].get(name)
            ratio_cells = [ratio(Spread(**to_plain)) if to_plain else "", "", ""]
            used_cells = [used, "", ""]
            if name == OURS:
                target, met = result["aim"], result["met"]
                ratio_cells[1:] = _verdict(target["ratio"], met["ratio"])
                share = target["utilization"]
                used_cells[1:] = _verdict(share and 100 * share, met["utilization"])
            speed = rate(Spread(**result["pieces_per_second"][name]))
            padding = f"{100 * result['padding'][name]:.1f}"
            rows.append([f"{device.upper()}: {name}", speed, *ratio_cells, *used_cells, padding])
    targets = ["at least", "met"]
    header = [
        "",
        "pieces/s",
        f"{TIMES} {PLAIN}",
        *targets,
        "utilization, %",
        *targets,
        "padding, %",
    ]
    return Table(title="Distillation, pieces of text per second", header=header, rows=rows)


def _verdict(target: float | None, met: bool | None) -> list[str]:
    return ["", ""] if target is None else [f"{target:g}", verdict(met)]


def about(result: Mapping[str, Any]) -> str:
    """Describe how a result was measured."""
    shape, size, flops = result["shape"], result["size"], result["flops_per_piece"]
    n_blocks = size["blocks"] * size["accumulate"] * size["steps"]
    side = OURS if OURS in flops else next(iter(flops))
    device = f"{result['device']}, " if result["device"] else ""
    return (
        f"{device}{result['precision']}, {count(result['threads'], 'thread')} of "
        f"torch. Teacher of {shape['teacher_layers']} layers, student of {shape['layers']}, width "
        f"{shape['width']}, random weights. {count(result['documents'], 'document')} of "
        f"{result['text']}: {result['pieces']:,} pieces, which fill {count(n_blocks, 'block')} of "
        f"{shape['length']}; {count(size['blocks'], 'block')}, or rows of the {PLAIN}, in a "
        f"forward pass, {count(size['steps'], 'optimizer step')} in a round. Pieces/s: median "
        f"(range) of {count(len(result['words']), 'round')} in turns; the ratio is the median "
        f"(range) over the rounds. Useful operations: {flops[side] / 1e6:,.3g} million a piece "
        f"({side}); utilization is their share of the fastest matrix products in the run, "
        f"{max(result['matmul_flops_per_second']) / 1e12:,.3g} Tflop/s. Ours learns soft targets "
        "at masked pieces, the plain loop at all pieces, unless a row says otherwise."
    )


def read_results(output: Path) -> dict[Device, Any]:
    """Read the results that were saved before, by device."""
    path = output / f"{STEM}.json"
    if not path.is_file():
        return {}
    saved = json.loads(path.read_text(encoding="utf-8"))
    return {device: saved.get(device) for device in TARGETS}


def save(results: Mapping[Device, Any], output: Path) -> None:
    """Save the results of all devices."""
    parts: list[Part] = [make_table(results)]
    for device, result in results.items():
        if result is not None:
            machine = measured_on(result["machine"], result["date"])
            parts.append(f"{device.upper()}: {about(result)} {machine}")
    save_files(parts, {str(device): result for device, result in results.items()}, output, STEM)
