"""What the tables of measurements have in common: cells, and the line on what they were made on."""

from __future__ import annotations

from typing import Any

from spacy_distil.report.speed import Spread

EN_DASH = "\N{EN DASH}"
TIMES = "\N{MULTIPLICATION SIGN}"
MISSING = EN_DASH


def measured_on(machine: dict[str, Any], date: str) -> str:
    """CPU, memory, system and versions.

    machine: as `describe_machine` has it. date: ISO 8601.
    """
    return (
        f"Measured on {machine['cpu']}, {machine['cores'] or machine['logical_cores']} cores "
        f"({machine['logical_cores']} logical), {machine['memory_bytes'] / 2**30:.0f} GiB of "
        f"memory; {machine['system']}; Python {machine['python']}; "
        f"{versions(machine['versions'])}. {date[:10]}."
    )


def versions(packages: dict[str, str | None]) -> str:
    """The packages that are installed, with their versions."""
    return ", ".join(f"{package} {version}" for package, version in packages.items() if version)


def with_range(spread: Spread, form: str) -> str:
    """Median (min-max). form: of each number, such as "{:,.0f}"."""
    low, high = form.format(spread.min), form.format(spread.max)
    return f"{form.format(spread.median)} ({low}{EN_DASH}{high})"


def count(n: int, what: str) -> str:
    """1 thread, 2 threads."""
    return f"{n:,} {what}" if n == 1 else f"{n:,} {what}s"
