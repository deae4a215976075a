"""The model card of a pipeline: a README.md as `spacy package` and the Hugging Face hub expect.

It says what the records of the runs say, and what nobody has measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import srsly
from spacy.util import load_config
from wasabi import MarkdownRenderer

from spacy_distil.errors import ConfigError, CorpusError, require
from spacy_distil.report.layout import measured_on
from spacy_distil.report.reliability.table import ABOUT
from spacy_distil.report.scores import COLUMNS, Column
from spacy_distil.runs.files import write_text
from spacy_distil.tables import Table, megabytes
from spacy_distil.text.languages import language_name

README, META, CONFIG = "README.md", "meta.json", "config.cfg"
# Types of the hub, by `Column.counts`.
_TASKS = {
    "pos": "token-classification",
    "tag": "token-classification",
    "ents": "token-classification",
    "cats": "text-classification",
}

# Of the results of each command: where they have their entries, and what these have.
_NEEDED = {
    "compare": ("rows", {"name", "scores", "speed", "n_bytes", "n_parameters"}),
    "robustness": ("rows", {"name", "clean", "noisy"}),
    "calibrate": ("pipes", {"pipe", "before", "after"}),
}


@dataclass(frozen=True)
class CardRecords:
    """What the card is made from, beside the pipeline: contents of JSON files.

    comparison: of `distil compare`. robustness: of `distil robustness`. calibration: of `distil
        calibrate --report`. None for each that there is not.
    row: name of the pipeline in the first two.
    """

    comparison: Mapping[str, Any] | None = None
    robustness: Mapping[str, Any] | None = None
    calibration: Mapping[str, Any] | None = None
    row: str = ""


def write_card(
    pipeline: Path,
    records: CardRecords,
    *,
    licence: str = "",
    use: str = "",
    limits: str = "",
    force: bool = False,
) -> Path:
    """Write the README.md of a pipeline, and its licence and description into its meta.json.

    pipeline: directory of a saved pipeline.
    licence: such as "mit"; empty for the one in meta.json.
    use, limits: paragraphs on what the pipeline is meant for, and where it fails.
    force: replace a README.md that is there.
    RETURNS: the file.
    """
    path = pipeline / README
    for name in (META, CONFIG):
        if not (pipeline / name).is_file():
            raise ConfigError(f"{pipeline} is no saved pipeline: it has no {name}.")
    if path.exists() and not force:
        raise ConfigError(f"{path} exists. Replace it with --force.")
    meta = _read_meta(pipeline / META)
    meta["license"] = licence or meta.get("license", "")
    meta["description"] = meta.get("description") or _describe(meta)
    config = load_config(pipeline / CONFIG, interpolate=True)
    card = make_card(meta, config, records, use=use, limits=limits)
    write_text(path, card)
    write_text(pipeline / META, srsly.json_dumps(meta, indent=2) + "\n")
    return path


def make_card(
    meta: Mapping[str, Any],
    config: Mapping[str, Any],
    records: CardRecords,
    *,
    use: str = "",
    limits: str = "",
) -> str:
    """Write the text of a card. meta, config: of the pipeline."""
    name = f"{meta['lang']}_{meta['name']}"
    compared = _find_row(records.comparison, records.row, "comparison")
    robust = _find_row(records.robustness, records.row, "robustness")
    card = MarkdownRenderer()
    card.add(_metadata(name, meta, records.comparison, compared))
    card.add(card.title(1, name))
    card.add(str(meta["description"]))
    card.add(card.code_block(f'import spacy\n\nnlp = spacy.load("{name}")', "python"))
    card.add(card.title(2, "Intended use"))
    card.add(use or _describe_use(meta))
    card.add(card.title(2, "Limits"))
    card.add(limits or "Nobody has written down where it fails. Measure it on texts of your own.")
    missing = _missing(records, compared)
    if missing:
        card.add(f"Not measured: {', '.join(missing)}.")
    card.add(card.title(2, "Origin"))
    card.add(card.list(_origin(meta, config, records.comparison)))
    if compared is not None and records.comparison is not None:
        card.add(card.title(2, "Scores, speed and size"))
        card.add(_table(_scores(compared, records.comparison)))
        card.add(_cost(compared, records.comparison))
    calibration = _calibration(records, compared, meta)
    if calibration:
        card.add(card.title(2, "Calibration"))
        card.add(calibration)
    if robust is not None and records.robustness is not None:
        card.add(card.title(2, "Robustness"))
        card.add(_table(_robustness(robust)))
        test = Path(str(records.robustness["test"])).name
        card.add(
            f"Scores in % on {records.robustness['n_docs']:,} documents of {test}, and their "
            "change from clean text by noise, with its 95 % interval."
        )
        verdicts = records.robustness["verdicts"]
        if verdicts:
            card.add(card.list(verdicts))
    card.add(card.title(2, "Licence"))
    card.add(
        str(meta["license"])
        or "Nobody has stated it. It depends on the licences of the teacher and of the data."
    )
    return f"{card.text}\n"


def _describe(meta: Mapping[str, Any]) -> str:
    pipes = ", ".join(meta.get("components", ()))
    return f"{language_name(meta['lang'])} pipeline, made with spacy-distil: {pipes}."


def _describe_use(meta: Mapping[str, Any]) -> str:
    assigned = [name for name, labels in meta.get("labels", {}).items() if labels]
    return (
        f"{language_name(meta['lang'])} text like the documents that it has learned from. It "
        f"predicts the labels of {', '.join(assigned) or 'none of its pipes'}."
    )


def _find_row(results: Mapping[str, Any] | None, row: str, what: str) -> Mapping[str, Any] | None:
    if results is None:
        return None
    rows = {each["name"]: each for each in results["rows"]}
    if row not in rows:
        names = ", ".join(map(repr, rows)) or "none"
        raise ConfigError(f"The {what} has no row {row!r}. Its rows: {names}. Set --row.")
    found: Mapping[str, Any] = rows[row]
    return found


def _missing(records: CardRecords, compared: Mapping[str, Any] | None) -> list[str]:
    measured = {
        "scores and speed": records.comparison,
        "calibration": records.calibration or (compared or {}).get("reliability"),
        "robustness to typos and other noise": records.robustness,
    }
    return [what for what, record in measured.items() if not record]


def _metadata(
    name: str,
    meta: Mapping[str, Any],
    comparison: Mapping[str, Any] | None,
    row: Mapping[str, Any] | None,
) -> str:
    """The block at the top, which the Hugging Face hub reads."""
    require("huggingface_hub", extra="train", purpose="A model card")
    from huggingface_hub import EvalResult, ModelCardData

    results = []
    if comparison is not None and row is not None:
        test = Path(str(comparison["test"])).stem
        results = [
            EvalResult(
                task_type=_TASKS[column.counts],
                dataset_type=test,
                dataset_name=test,
                metric_type="f1" if column.key in ("ents_f", "cats_macro_f") else "accuracy",
                metric_name=column.title,
                metric_value=round(row["scores"][column.key]["mean"], 4),
            )
            for column in _tasks(row)
        ]
    tags = ["spacy", "spacy-distil", *dict.fromkeys(each.task_type for each in results)]
    data = ModelCardData(
        language=None if meta["lang"] == "xx" else meta["lang"],
        license=str(meta["license"]) or None,
        library_name="spacy",
        tags=tags,
        model_name=name,
        eval_results=results or None,
    )
    return f"---\n{data.to_yaml()}\n---"


def _tasks(row: Mapping[str, Any]) -> list[Column]:
    return [column for column in COLUMNS if column.is_task and column.key in row["scores"]]


def _origin(
    meta: Mapping[str, Any],
    config: Mapping[str, Any],
    comparison: Mapping[str, Any] | None,
) -> list[str]:
    """Say which settings the pipeline was trained with. Paths lose their directories."""
    found = [f"Version {meta['version']}, for spaCy {meta['spacy_version']}"]
    if comparison is not None and comparison.get("teacher"):
        found.append(f"Teacher: {comparison['teacher']}")
    paths = {
        key: Path(str(value)).name
        for key, value in config.get("paths", {}).items()
        if value and key in ("train", "dev", "text", "encoder")
    }
    found += [f"{key}: {value}" for key, value in paths.items()]
    training = config.get("training", {})
    if training.get("max_steps"):
        found.append(f"At most {training['max_steps']:,} steps, seed {training.get('seed')}")
    distillation = config.get("distillation", {})
    for name, stage in distillation.get("stages", {}).items():
        if stage.get("share"):
            weights = [f"{key} {value}" for key, value in stage.items() if value]
            found.append(f"Stage of distillation {name}: {', '.join(weights)}")
    noise = distillation.get("noise", {})
    if noise.get("share"):
        found.append(
            f"It has read {noise['share']:.0%} of the documents with noise: "
            f"{', '.join(noise.get('kinds', ()))}"
        )
    return found


def _scores(row: Mapping[str, Any], comparison: Mapping[str, Any]) -> Table:
    rows = []
    for column in _tasks(row):
        score = row["scores"][column.key]
        kept = row.get("retention", {}).get(column.key)
        cells = [column.title, _percent(score["mean"], column.decimals)]
        cells.append(_interval(score["interval"]))
        cells.append("" if kept is None else _percent(kept["value"], 1))
        rows.append(cells)
    teacher = comparison.get("teacher") or "the teacher"
    header = ["score", "%", "95 % interval", f"% of {teacher}"]
    return Table("Scores", header, rows)


def _cost(row: Mapping[str, Any], comparison: Mapping[str, Any]) -> str:
    speed = row["speed"]["words_per_second"]
    return (
        f"{comparison['n_docs']:,} documents of {Path(str(comparison['test'])).name}; {speed:,.0f} "
        f"words/s on {comparison['settings']['threads']} CPU threads; "
        f"{megabytes(row['n_bytes'])} on disk, {row['n_parameters']:,} weights. "
        f"{measured_on(dict(comparison['machine']), comparison['date'])}"
    )


def _calibration(
    records: CardRecords, compared: Mapping[str, Any] | None, meta: Mapping[str, Any]
) -> str:
    """Say how far probabilities can be believed; empty if nobody knows."""
    parts = []
    if meta.get("calibration"):
        pipes = ", ".join(meta["calibration"])
        parts.append(f"Temperatures were fitted for {pipes}.")
    header = ["pipe", "of", "accuracy, %", "confidence, %", "ECE, %", "by chance, %"]
    if records.calibration is not None:
        rows = [
            [*_reliability(own["pipe"], own["after"]), _percent(own["before"]["ece"]["mean"], 2)]
            for own in records.calibration["pipes"]
        ]
        parts += [_table(Table("Calibration", [*header, "ECE before, %"], rows)), ABOUT]
    elif compared is not None and compared.get("reliability"):
        rows = [_reliability(name, own) for name, own in compared["reliability"].items()]
        parts += [_table(Table("Calibration", header, rows)), ABOUT]
    return "\n\n".join(parts)


def _reliability(pipe: str, found: Mapping[str, Any]) -> list[str]:
    interval = found["ece"]["interval"]
    ece = _percent(found["ece"]["mean"], 2)
    if interval is not None:
        ece += f" [{_percent(interval[0], 2)}, {_percent(interval[1], 2)}]"
    shares = (_percent(found[key], 2) for key in ("accuracy", "confidence"))
    of = f"{found['n']:,} {found['what']}"
    return [pipe, of, *shares, ece, _percent(found["ece_by_chance"], 2)]


def _robustness(row: Mapping[str, Any]) -> Table:
    columns = [each for each in COLUMNS if each.is_task and each.key in row["clean"]]
    rows = [["none", "", *(_percent(row["clean"][c.key]["mean"], c.decimals) for c in columns)]]
    for each in row["noisy"]:
        cells = [each["noise"]["kind"], f"{100 * each['noise']['rate']:g}%"]
        for column in columns:
            score = each["scores"].get(column.key)
            drop = each["drops"].get(column.key)
            if score is None or drop is None:
                cells.append("")
                continue
            change, interval = drop
            ends = "" if interval is None else f" [{_change(interval[1])}, {_change(interval[0])}]"
            value = _percent(score["mean"], column.decimals)
            cells.append(f"{value} ({_change(change)}{ends})")
        rows.append(cells)
    return Table("Robustness", ["noise", "rate", *(each.title for each in columns)], rows)


def _change(drop: float) -> str:
    """Format a loss as a change: "-3.1", "+0.2", "0.0"."""
    text = f"{-100 * drop:+.1f}"
    return text if float(text) else "0.0"


def _table(table: Table) -> str:
    """A table without its title, which the heading above it says."""
    return table.to_markdown().split("\n\n", 1)[1]


def _percent(share: float, decimals: int) -> str:
    return f"{100 * share:.{decimals}f}"


def _interval(interval: Sequence[float] | None) -> str:
    return "" if interval is None else f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f}"


def read_results(path: Path, name: str) -> Mapping[str, Any]:
    """Read the JSON file of a measurement. path: the file, or its directory."""
    file = path / f"{name}.json" if path.is_dir() else path
    try:
        results = srsly.read_json(file)
    except (OSError, ValueError) as error:
        raise CorpusError(
            f"{file} cannot be read as results of `distil {name}`: {error}. Run it first."
        ) from error
    key, needed = _NEEDED[name]
    entries = results.get(key) if isinstance(results, dict) else None
    if not isinstance(entries, list) or not all(
        isinstance(each, dict) and needed <= each.keys() for each in entries
    ):
        raise CorpusError(
            f"{file}: expected the results of `distil {name}`, with {key!r} that have "
            f"{', '.join(sorted(needed))}."
        )
    assert isinstance(results, dict)
    return results


def _read_meta(path: Path) -> dict[str, Any]:
    try:
        meta = srsly.read_json(path)
    except ValueError as error:
        raise ConfigError(f"{path} is damaged ({error}). Save the pipeline again.") from error
    if not isinstance(meta, dict) or not {"lang", "name", "version"} <= meta.keys():
        raise ConfigError(f"{path} has no lang, name and version. Save the pipeline again.")
    return meta
