"""A comparison as Markdown, and as text for the terminal."""

from __future__ import annotations

from pathlib import Path

from spacy_distil.errors import ConfigError
from spacy_distil.report.bootstrap import Interval
from spacy_distil.report.layout import EN_DASH, MISSING, TIMES, count, measured_on, with_range
from spacy_distil.report.results import Figure, Report, Retention, Row
from spacy_distil.report.scores import COLUMNS
from spacy_distil.tables import Table


def make_tables(report: Report) -> list[Table]:
    """Scores, retention where there is a teacher, and speed and size."""
    tables = [_scores(report)]
    if report.teacher is not None:
        tables.append(_retention(report, report.teacher))
    tables.append(_speed(report))
    return [table for table in tables if len(table.header) > 1]


def to_markdown(report: Report, *, plot: str | None = None) -> str:
    """All tables, the plot and how it was measured.

    plot: where the plot lies, as the Markdown file has to link to it.
    """
    parts = [f"### {report.title}"] if report.title else []
    parts += [table.to_markdown() for table in make_tables(report)]
    if plot is not None:
        parts.append(f"![Accuracy against speed]({plot})")
    parts.append(describe(report))
    return "\n\n".join(parts) + "\n"


def to_text(report: Report) -> str:
    """All tables, for the terminal."""
    return "\n".join(table.to_text() for table in make_tables(report))


def describe(report: Report) -> str:
    """How it was measured, and on what."""
    settings = report.settings
    spread = (
        "± is the standard deviation over seeds; "
        if any(len(row.pipelines) > 1 for row in report.rows)
        else ""
    )
    return (
        f"Test set: {report.n_docs:,} documents, {report.n_words:,} spaCy tokens. Scores in %, "
        f"from spaCy's scorer; {spread}brackets hold the {settings.level:.0%} bootstrap interval "
        f"over documents. Words/s: spaCy tokens per second of wall time through `nlp.pipe` from "
        f"raw texts, median (min{EN_DASH}max) of {settings.repeats} interleaved rounds on the CPU, "
        f"{count(settings.threads, 'thread')}, batches of "
        f"{settings.batch_size} documents. Peak memory of one pass, load time and cold start "
        f"(process start to first doc): each pipeline in a process of its own, in the environment "
        f"named here.\n\n"
        f"{measured_on(report.machine, report.date)}"
    )


def _scores(report: Report) -> Table:
    columns = [c for c in COLUMNS if any(c.key in row.scores for row in report.rows)]
    return Table(
        title="Scores",
        header=["pipeline", *(c.title for c in columns)],
        rows=[
            [_name(row), *(_figure(row.scores.get(c.key), c.decimals) for c in columns)]
            for row in report.rows
        ],
    )


def _retention(report: Report, teacher: str) -> Table:
    columns = [c for c in COLUMNS if any(c.key in row.retention for row in report.rows)]
    return Table(
        title=f"Retention: score / score of {teacher}, %",
        header=["pipeline", *(c.title for c in columns)],
        rows=[
            [_name(row), *(_kept(row.retention.get(c.key), c.decimals) for c in columns)]
            for row in report.rows
            if row.name != teacher
        ],
    )


def _speed(report: Report) -> Table:
    batch_size = report.settings.batch_size
    rates = {row.name: row.speed.words_per_second(batch_size) for row in report.rows}
    header = ["pipeline", "words/s", "parameters", "MB on disk", "peak RSS, MB"]
    header += ["load, s", "cold start, s"]
    if report.teacher is not None:
        header.insert(2, f"{TIMES} {report.teacher}")
    rows = []
    for row in report.rows:
        cells = [
            row.name,
            with_range(rates[row.name], "{:,.0f}"),
            _millions(row.n_parameters),
            f"{row.n_bytes / 1e6:,.1f}",
            f"{row.speed.peak_rss_bytes / 1e6:,.0f}",
            f"{row.speed.load_seconds:.2f}",
            f"{row.speed.cold_start_seconds:.2f}",
        ]
        if report.teacher is not None:
            times = rates[row.name].median / rates[report.teacher].median
            cells.insert(2, f"{times:.2f}")
        rows.append(cells)
    return Table(title="Speed and size", header=header, rows=rows)


def _name(row: Row) -> str:
    return row.name if len(row.pipelines) == 1 else f"{row.name} ({len(row.pipelines)} seeds)"


def _figure(figure: Figure | None, decimals: int) -> str:
    if figure is None:
        return MISSING
    std = "" if figure.std is None else f" ± {figure.std * 100:.{decimals}f}"
    return f"{figure.mean * 100:.{decimals}f}{std}{_interval(figure.interval)}"


def _kept(retention: Retention | None, decimals: int) -> str:
    if retention is None:
        return MISSING
    return f"{retention.value * 100:.{decimals}f}{_interval(retention.interval)}"


def _interval(interval: Interval | None) -> str:
    return "" if interval is None else f" [{interval[0] * 100:.1f}, {interval[1] * 100:.1f}]"


def _millions(n: int) -> str:
    return f"{n / 1e6:.1f} M" if n >= 1e6 else f"{n:,}"


def check_section(file: Path, section: str) -> None:
    """Raise ConfigError where `file` has no place for the section."""
    _find_section(file, section)


def replace_section(file: Path, section: str, markdown: str) -> None:
    """Replace what stands between the section's markers, which stay.

    file: has `<!-- SECTION:start -->` and, after it, `<!-- SECTION:end -->`, once each.
    """
    text, start, end = _find_section(file, section)
    file.write_text(f"{text[:start]}\n{markdown.strip()}\n{text[end:]}", encoding="utf-8")


def _find_section(file: Path, section: str) -> tuple[str, int, int]:
    """The file's text, and where the section starts and ends in it."""
    first, last = f"<!-- {section}:start -->", f"<!-- {section}:end -->"
    if not file.is_file():
        raise ConfigError(f"No file {file} to put the tables into. Make it, with {first} {last}.")
    text = file.read_text(encoding="utf-8")
    if text.count(first) != 1 or text.count(last) != 1 or text.index(first) > text.index(last):
        raise ConfigError(
            f"{file}: expected {first} and, after it, {last}, once each, around the place of the "
            f"tables; found {text.count(first)} and {text.count(last)}. Add them."
        )
    return text, text.index(first) + len(first), text.index(last)
