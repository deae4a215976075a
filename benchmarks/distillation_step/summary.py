"""What `distil` says of what it found: against its aims, in a table and in saved results."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from wasabi import msg

from benchmarks.distillation_step.timing import Found
from benchmarks.distillation_step.rows import OURS, PLAIN, Kind
from spacy_distil.report.layout import TIMES, count, measured_on, with_range
from spacy_distil.report.speed import Spread
from spacy_distil.tables import Table

STEM = "distil"
NOT_YET = "not yet measured"


@dataclass(frozen=True)
class Aim:
    """ratio: least pieces/s of ours, of the plain loop's. utilisation: least; `None` for none."""

    ratio: float
    utilisation: float | None


AIMS: dict[Kind, Aim] = {"cpu": Aim(1.5, None), "gpu": Aim(3.0, 0.4)}
COMMANDS: dict[Kind, str] = {
    "cpu": "python -m benchmarks.distillation_step --cpu --output benchmarks/ewt",
    "gpu": "python -m benchmarks.distillation_step --gpu --output benchmarks/ewt",
}


def summarize(aim: Aim, found: Found, useful: Callable[[int], float]) -> dict[str, Any]:
    """For JSON. Utilisation is that of the best rate of products in the run.

    useful: operations of a piece by the length of what it stands in.
    """
    measured, best = found.measured, max(found.matmul)
    speeds = {name: measured.words_per_second(name) for name in measured.seconds}
    flops = {
        # Pieces are many where sequences are long: a mean over pieces, not over sequences.
        name: sum(length * useful(length) for length in lengths) / sum(lengths)
        for name, lengths in found.lengths.items()
    }
    utilisation = {name: scaled(speeds[name], flops[name] / best) for name in speeds}
    ratio = {
        name: measured.ratio(name, PLAIN) for name in speeds if PLAIN in speeds and name != PLAIN
    }
    return {
        **asdict(measured),
        "pieces_per_second": _plain(speeds),
        "ratio": _plain(ratio),
        "padding": {
            name: 1 - positions.real / positions.computed
            for name, positions in found.positions.items()
        },
        "flops_per_piece": flops,
        "matmul_flops_per_second": found.matmul,
        "utilisation": _plain(utilisation),
        "aim": asdict(aim),
        "met": {
            "ratio": ratio[OURS].median >= aim.ratio if OURS in ratio else None,
            "utilisation": (
                utilisation[OURS].median >= aim.utilisation
                if OURS in utilisation and aim.utilisation is not None
                else None
            ),
        },
    }


def scaled(spread: Spread, factor: float) -> Spread:
    return Spread(spread.median * factor, spread.min * factor, spread.max * factor)


def _plain(spreads: Mapping[str, Spread]) -> dict[str, dict[str, float]]:
    return {name: asdict(spread) for name, spread in spreads.items()}


def make_table(results: Mapping[Kind, Any]) -> Table:
    """A row for each side on each kind of device, the verdicts in that of ours.

    results: as `summarize` has them; `None` for a kind that was not measured.
    """
    rows = []
    for kind, result in results.items():
        if result is None:
            rows.append([f"{kind.upper()}: `{COMMANDS[kind]}`", NOT_YET, *[""] * 7])
            continue
        for name in result["seconds"]:
            speed = with_range(Spread(**result["pieces_per_second"][name]), "{:,.0f}")
            used = with_range(scaled(Spread(**result["utilisation"][name]), 100), "{:.1f}")
            ratio = result["ratio"].get(name)
            cells = [with_range(Spread(**ratio), "{:.2f}") if ratio else "", "", ""]
            used_cells = [used, "", ""]
            if name == OURS:
                aim, met = result["aim"], result["met"]
                cells[1:] = _verdict(aim["ratio"], "{:g}", met["ratio"])
                share = aim["utilisation"]
                used_cells[1:] = _verdict(share and 100 * share, "{:g}", met["utilisation"])
            padding = f"{100 * result['padding'][name]:.1f}"
            rows.append([f"{kind.upper()}: {name}", speed, *cells, *used_cells, padding])
    aims = ["at least", "met"]
    header = ["", "pieces/s", f"{TIMES} {PLAIN}", *aims, "utilisation, %", *aims, "padding, %"]
    return Table(title="Distillation, pieces of text per second", header=header, rows=rows)


def _verdict(aim: float | None, form: str, met: bool | None) -> list[str]:
    if aim is None:
        return ["", ""]
    return [form.format(aim), "" if met is None else "yes" if met else "no"]


def about(result: Mapping[str, Any]) -> str:
    """How it was measured."""
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
        f"(range) of {count(len(result['words']), 'round')} in turns, the ratio is that of each "
        f"round. Useful operations: {flops[side] / 1e6:,.3g} million a piece ({side}); "
        f"utilisation is their share of the fastest products of matrices in the run, "
        f"{max(result['matmul_flops_per_second']) / 1e12:,.3g} Tflop/s. Ours learns soft targets "
        "at masked pieces, the plain loop at all, but where a row says otherwise."
    )


def read_results(output: Path) -> dict[Kind, Any]:
    """What was measured before, by kind of device."""
    path = output / f"{STEM}.json"
    if not path.is_file():
        return {}
    saved = json.loads(path.read_text(encoding="utf-8"))
    return {kind: saved.get(kind) for kind in AIMS}


def save(results: Mapping[Kind, Any], output: Path) -> None:
    """Write the JSON file and the Markdown file."""
    parts = [make_table(results).to_markdown()]
    for kind, result in results.items():
        if result is not None:
            where = measured_on(result["machine"], result["date"])
            parts.append(f"{kind.upper()}: {about(result)} {where}")
    output.mkdir(parents=True, exist_ok=True)
    text = json.dumps(results, indent=2)
    (output / f"{STEM}.json").write_text(text + "\n", encoding="utf-8")
    (output / f"{STEM}.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    msg.good(f"Saved {STEM}.json and {STEM}.md to {output}")
