"""`spacy distil robustness`: score pipelines on noisy text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from wasabi import msg

from spacy_distil.cli.app import distil_cli
from spacy_distil.cli.options import BatchSize, Code, NamedPipelines, Title, name_pipelines
from spacy_distil.errors import ConfigError, friendly_errors


@distil_cli.command("robustness", no_args_is_help=True)
def robustness_cli(
    pipelines: NamedPipelines,
    test: Annotated[
        Path,
        typer.Argument(
            metavar="TEST.spacy", help="Annotated documents. No pipeline may have seen them."
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Directory for robustness.json, robustness.md, robustness.html and "
            "robustness.png.",
        ),
    ] = None,
    kinds: Annotated[
        str | None,
        typer.Option(
            "--kinds",
            metavar="KIND,...",
            help="Kinds of noise: keyboard, swap, drop, double, lower, upper, title, ocr, accents, "
            "lookalikes, spaces. Default: all.",
        ),
    ] = None,
    rates: Annotated[
        str,
        typer.Option(
            "--rates",
            metavar="RATE,...",
            help="Shares of the words that change, of those that a kind can change.",
        ),
    ] = "0.05,0.15,0.3",
    seed: Annotated[int, typer.Option("--seed", help="Seed of the noise.")] = 0,
    limit: Annotated[
        int, typer.Option("--limit", help="Only the first N documents; 0 for all.")
    ] = 0,
    batch_size: BatchSize = 64,
    code: Code = None,
    title: Title = "",
) -> None:
    """Score pipelines on noisy text: typos, casing, OCR errors, odd spaces.

    All pipelines read the same texts, with typos of the keyboard of the first one's language. The
    annotation stays with its words. The tables show each score under each noise, and how much it
    lost.
    """
    with friendly_errors():
        from spacy_distil.noise import KINDS
        from spacy_distil.report.machine import command_line
        from spacy_distil.trust.robustness import measure_robustness
        from spacy_distil.trust.robustness_page import to_text

        result = measure_robustness(
            name_pipelines(pipelines),
            test,
            output,
            kinds=KINDS if kinds is None else [kind.strip() for kind in kinds.split(",")],
            rates=_rates(rates),
            seed=seed,
            limit=limit,
            batch_size=batch_size,
            code=code,
            title=title,
            command=command_line(),
            log=msg.info,
        )
    print(to_text(result))
    if result.unchanged:
        msg.info(f"Nothing to change by {', '.join(result.unchanged)} in these documents")
    for verdict in result.verdicts:
        msg.warn(verdict)
    if output is not None:
        msg.good(
            f"Saved robustness.json, robustness.md, robustness.html and robustness.png to {output}"
        )


def _rates(value: str) -> list[float]:
    """Parse shares between commas, ascending. Repeated ones count once."""
    try:
        return sorted({float(part) for part in value.split(",")})
    except ValueError:
        raise ConfigError(f"--rates {value}: expected shares, such as 0.05,0.15.") from None
