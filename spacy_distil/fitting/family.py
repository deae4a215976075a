"""Several students in one pipeline, of which the best one that fits is loaded where it runs.

The directory is an ordinary pipeline: the best student, with the others beside it in `members/`. So
`spacy.load` and `spacy package` take it as any other.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import statistics
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import spacy
import srsly
from platformdirs import user_cache_path
from spacy.language import Language
from spacy.util import is_package

from spacy_distil.cpu import cpu_model
from spacy_distil.errors import ConfigError
from spacy_distil.pipelines import check_pipeline, load_pipeline
from spacy_distil.runs.files import atomic_directory, write_text
from spacy_distil.text.documents import example_documents

if TYPE_CHECKING:
    from spacy_distil.fitting.results import Student

FILE, MEMBERS = "family.json", "members"
# Of the timing on the machine that loads: tokens in a pass, passes, texts one at a time.
_WORDS, _PASSES, _TEXTS = 4_000, 3, 40
_BATCH_SIZE = 64
# Packages whose versions change the speed.
_PACKAGES = ("spacy", "thinc", "numpy", "onnxruntime", "tokenizers", "spacy-distil")
_LIMITS = ("words_per_second", "latency_ms", "size_mb", "memory_mb")


def write_family(
    directory: Path,
    pipelines: Mapping[str, Path],
    students: Mapping[str, Student],
    *,
    words_per_document: float,
) -> None:
    """Write a family.

    pipelines: directories of the students, the best one first.
    students: of the same names, with costs and scores.
    words_per_document: of the documents that they were timed on. The texts of later timings are as
        long.
    """
    first = next(iter(pipelines))
    with atomic_directory(directory) as unfinished:
        members = []
        for name, path in pipelines.items():
            place = "." if name == first else f"{MEMBERS}/{name}"
            shutil.copytree(path, unfinished / place, dirs_exist_ok=True)
            costs = students[name].known_costs()
            members.append(
                {
                    "name": name,
                    "path": place,
                    "score": students[name].score,
                    "size_mb": costs.size_mb,
                    "memory_mb": costs.memory_mb,
                    "words_per_second": costs.words_per_second,
                }
            )
        data = {"words_per_document": words_per_document, "members": members}
        write_text(unfinished / FILE, json.dumps(data, indent=2) + "\n")


def load(
    family: str | Path,
    *,
    words_per_second: float | None = None,
    latency_ms: float | None = None,
    percentile: Literal[50, 95] = 50,
    size_mb: float | None = None,
    memory_mb: float | None = None,
    **settings: Any,
) -> Language:
    """Load the best student of a family that fits a budget on this machine.

        nlp = spacy_distil.load("en_family", latency_ms=2)

    The students are timed here, the best one first, on example sentences of their language, until
    one fits: a few seconds each. The times are kept for the next call, for this CPU and these
    versions of packages. Size and memory come from the machine that made the family. Without a
    budget, it is the best student.

    family: directory or package that `distil fit --family` made.
    words_per_second: fewest tokens per second through `nlp.pipe`.
    latency_ms: longest time of `nlp(text)` at the percentile, in milliseconds.
    size_mb, memory_mb: largest size on disk, and peak resident memory, in millions of bytes.
    settings: more arguments of `spacy.load`, such as `disable`.

    Raises ConfigError if no student fits, with the nearest one.
    """
    root = find_directory(family)
    data = read_family(root)
    limits = {"words_per_second": words_per_second, "latency_ms": latency_ms}
    limits |= {"size_mb": size_mb, "memory_mb": memory_mb}
    wanted = {name: limit for name, limit in limits.items() if limit is not None}
    for name, limit in wanted.items():
        if not isinstance(limit, int | float) or not limit > 0:
            raise ConfigError(f"{name} = {limit!r}: expected a number above 0.")
    if percentile not in (50, 95):
        raise ConfigError(f"percentile = {percentile}: expected 50 or 95.")
    timings = Timings(root, data)
    known: list[str] = []
    for member in sorted(data["members"], key=lambda each: -each["score"]):
        costs = {name: member[name] for name in ("size_mb", "memory_mb")}
        needs_timing = "words_per_second" in wanted or "latency_ms" in wanted
        if needs_timing and all(_fits(name, costs[name], wanted) for name in costs):
            found = timings.find(member)
            costs["words_per_second"] = found["words_per_second"]
            costs["latency_ms"] = found[f"p{percentile}_ms"]
        if all(name in costs and _fits(name, costs[name], wanted) for name in wanted):
            return spacy.load(root / member["path"], **settings)
        shown = ", ".join(f"{name} {costs[name]:,.1f}" for name in wanted if name in costs)
        known.append(f"{member['name']} ({shown})")
    asked = ", ".join(f"{name} = {limit:g}" for name, limit in wanted.items())
    raise ConfigError(f"No student of {family} fits {asked} on this machine: {'; '.join(known)}.")


def _fits(name: str, value: float, limits: Mapping[str, float]) -> bool:
    if name not in limits:
        return True
    return value >= limits[name] if name == "words_per_second" else value <= limits[name]


def find_directory(family: str | Path) -> Path:
    """Return the directory of a pipeline with its config, by directory or name of a package."""
    check_pipeline(str(family))
    if isinstance(family, str) and is_package(family):
        module = import_module(family)
        root = Path(str(module.__file__)).parent
        meta: Any = srsly.read_json(root / "meta.json")
        return root / f"{meta['lang']}_{meta['name']}-{meta['version']}"
    return Path(family)


def read_family(root: Path) -> dict[str, Any]:
    """Read the members of a family. Raises ConfigError for a pipeline that is none."""
    path = root / FILE
    if not path.is_file():
        raise ConfigError(
            f"{root} is no family of students: it has no {FILE}. Load it with spacy.load, or make "
            "a family with 'spacy distil fit --family'."
        )
    try:
        data: dict[str, Any] = json.loads(path.read_bytes())
        needed = {"name", "path", "score", "size_mb", "memory_mb"}
        whole = all(needed <= member.keys() for member in data["members"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} is damaged: {error}. Make the family again.") from error
    if not whole or not data["members"]:
        raise ConfigError(f"{path} is damaged: it lacks members. Make the family again.")
    return data


class Timings:
    """Speeds of the members on this machine, measured once and kept on disk."""

    def __init__(self, root: Path, data: Mapping[str, Any]) -> None:
        self._root, self._data = root, data
        self._file = user_cache_path("spacy-distil") / "families" / f"{self._key()}.json"

    def _key(self) -> str:
        """Return a digest of the family, the CPU and the versions."""
        parts: list[Any] = [self._data, cpu_model(), [_version(name) for name in _PACKAGES]]
        parts.append(sorted(_threads().items()))
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]

    def find(self, member: Mapping[str, Any]) -> dict[str, float]:
        """Return the speed of a member, measured now if it is not known."""
        kept = self._read()
        if member["name"] not in kept:
            nlp = load_pipeline(self._root / member["path"])
            kept[member["name"]] = time_pipeline(nlp, self._data.get("words_per_document", 20))
            self._write(kept)
        return kept[member["name"]]

    def _read(self) -> dict[str, dict[str, float]]:
        try:
            found = json.loads(self._file.read_bytes())
        except (OSError, ValueError):  # nothing is lost: it is measured again
            return {}
        needed = {"words_per_second", "p50_ms", "p95_ms"}
        return {name: own for name, own in found.items() if needed <= own.keys()}

    def _write(self, timings: Mapping[str, Any]) -> None:
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            write_text(self._file, json.dumps(timings, indent=2) + "\n")
        except OSError:  # a home that cannot be written to: the next process measures again
            return


def time_pipeline(nlp: Language, words_per_document: float) -> dict[str, float]:
    """Time a pipeline in this process, on example sentences of its language.

    RETURNS: "words_per_second", "p50_ms" and "p95_ms", medians.
    """
    texts = make_texts(nlp, words_per_document)
    n_words = sum(len(doc) for doc in nlp.pipe(texts, batch_size=_BATCH_SIZE))  # warms up
    seconds = []
    for _ in range(_PASSES):
        start = perf_counter()
        for _ in nlp.pipe(texts, batch_size=_BATCH_SIZE):
            pass
        seconds.append(perf_counter() - start)
    single = []
    for text in texts[:_TEXTS]:
        start = perf_counter()
        nlp(text)
        single.append(1000 * (perf_counter() - start))
    return {
        "words_per_second": n_words / statistics.median(seconds),
        "p50_ms": float(np.percentile(single, 50)),
        "p95_ms": float(np.percentile(single, 95)),
    }


def make_texts(nlp: Language, words_per_document: float) -> list[str]:
    """Make texts of about that many tokens of the example sentences, `_WORDS` in all."""
    sentences = example_documents(nlp).docs
    texts: list[str] = []
    parts: list[str] = []
    words = total = number = 0
    while total < _WORDS or len(texts) < _TEXTS:
        sentence = sentences[number % len(sentences)]
        number += 1
        parts.append(sentence.text)
        words += len(sentence)
        if words >= words_per_document:
            texts.append(" ".join(parts))
            total += words
            parts, words = [], 0
    return texts


def _threads() -> dict[str, str]:
    names: Sequence[str] = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    cores = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))(0)
    return {name: os.environ.get(name, "") for name in names} | {"cores": str(len(cores))}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
