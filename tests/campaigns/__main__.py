"""Run a campaign and keep its result, or write the table of all results.

python -m tests.campaigns NAME --n 100 --seed 0 --minutes 30 --save
python -m tests.campaigns table
"""

from __future__ import annotations

import sys
import time
from datetime import date
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from types import ModuleType
from typing import Annotated

import srsly
import typer

from spacy_distil.report.layout import measured_on
from spacy_distil.report.machine import command_line, describe_machine
from spacy_distil.report.readme import replace_section
from spacy_distil.tables import Table
from tests.campaigns.outcome import Deadline

HERE = Path(__file__).parent
RESULTS = HERE / "results"
PAGE = HERE.parents[1] / "docs" / "reliability.md"
SHOWN_FAILURES = 20

HEADER = ["campaign", "cases", "failures", "measured", "promise"]

app = typer.Typer(add_completion=False, rich_markup_mode=None, help=__doc__)


def find_campaigns() -> dict[str, ModuleType]:
    """Return every module of this package that has a `PROMISE`, by its name."""
    modules = {
        module.name: import_module(f"{__package__}.{module.name}")
        for module in iter_modules([str(HERE)])
        if not module.name.startswith(("_", "test_"))
    }
    return {name: module for name, module in modules.items() if hasattr(module, "PROMISE")}


@app.command()
def main(
    name: Annotated[str, typer.Argument(help="Campaign, or 'table' for the table of all.")],
    n: Annotated[
        int | None, typer.Option("--n", min=1, help="Number of cases. Default: its test's.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed")] = 0,
    minutes: Annotated[
        float | None, typer.Option("--minutes", help="Start no further case after this time.")
    ] = None,
    save: Annotated[
        bool, typer.Option("--save", help=f"Keep the result in {RESULTS.name}/.")
    ] = False,
) -> None:
    """Run a campaign, or write the table of all results to docs/reliability.md."""
    if name == "table":
        replace_section(PAGE, "campaigns", to_markdown())
        return
    campaigns = find_campaigns()
    if name not in campaigns:
        raise typer.BadParameter(f"No campaign {name!r}: expected one of {', '.join(campaigns)}.")
    campaign = campaigns[name]
    start = time.monotonic()
    outcome = campaign.run(n or campaign.SHORT, seed, Deadline(minutes))
    seconds = time.monotonic() - start
    for failure in outcome.failures[:SHOWN_FAILURES]:
        print(failure)
    figures = ", ".join(f"{key}: {value}" for key, value in outcome.figures.items())
    print(f"{name}: {outcome.cases} cases, {len(outcome.failures)} failures in {seconds:.0f} s")
    print(figures)
    if save:
        RESULTS.mkdir(exist_ok=True)
        result = {
            "cases": outcome.cases,
            "failures": outcome.failures,
            "figures": outcome.figures,
            "seconds": round(seconds),
            "command": command_line(),
            "machine": describe_machine(),
            "date": str(date.today()),
        }
        srsly.write_json(RESULTS / f"{name}.json", result)
    sys.exit(1 if outcome.failures else 0)


def to_markdown() -> str:
    """The table of all results that are kept, with their commands and machines."""
    rows, notes = [], {}
    for name, campaign in find_campaigns().items():
        file = RESULTS / f"{name}.json"
        if not file.is_file():
            continue
        result = srsly.read_json(file)
        measured = ", ".join(f"{key} {text}" for key, text in result["figures"].items())
        rows.append(
            [
                f"`{name}`",
                f"{result['cases']:,}",
                str(len(result["failures"])),
                measured,
                campaign.PROMISE,
            ]
        )
        note = f"`{result['command']}`"
        notes.setdefault(measured_on(result["machine"], result["date"]), []).append(note)
    lines = [f"{', '.join(commands)}: {machine}" for machine, commands in notes.items()]
    return "\n\n".join([Table("Campaigns", HEADER, rows).to_markdown(), *lines])


if __name__ == "__main__":
    app()
