"""Load and check saved pipelines."""

from __future__ import annotations

import re
import textwrap
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import spacy
from spacy.util import get_package_path, import_file, is_package, load_config, load_meta

from spacy_distil.errors import ConfigError, DistilError

if TYPE_CHECKING:
    from spacy.language import Language

# spaCy's messages about a factory, a registered function or a language that it does not know.
_UNKNOWN = (
    (re.compile(r"\[E002\] .*? factory for '(?P<name>[^']+)'"), "factory"),
    (re.compile(r"\[E893\] .*? function '(?P<name>[^']+)'"), "registered function"),
    (re.compile(r"\[E048\] .*? language (?P<name>\S+)"), "language"),
)
# Factories of pipes that read texts in pairs.
PAIR_FACTORIES = ("distil_pair", "distil_qa")
# A function of a plugin, such as "spacy-curated-transformers.RobertaTransformer.v1".
_PLUGIN = re.compile(r"(spacy-[\w-]+)\.")


def load_pipeline(pipeline: str | Path) -> Language:
    """Load a pipeline by path or package name.

    Raises ConfigError, with one sentence, for anything that keeps spaCy from loading it.
    """
    pipeline = str(pipeline)
    check_pipeline(pipeline)
    try:
        return spacy.load(pipeline)
    except DistilError:
        raise
    except Exception as error:  # pipes and files of any kind, and each fails in its own way
        raise ConfigError(loading_problem(pipeline, type(error).__name__, str(error))) from error


def loading_problem(pipeline: str, kind: str, message: str) -> str:
    """Say in one sentence why `spacy.load` failed.

    kind: name of the error's class. message: the error's message.
    """
    unknown = [(found, what) for pattern, what in _UNKNOWN if (found := pattern.match(message))]
    if not unknown:
        return f"{pipeline} cannot be loaded: {kind}: {one_line(message)}"
    found, what = unknown[0]
    name = found["name"]
    package = _find_plugin(name) or next(_find_plugins(pipeline, name), None)
    if package is not None:
        return (
            f"{pipeline} needs the {what} {name!r} of {package}, which is not installed. "
            f"Install it with: pip install {package}"
        )
    return (
        f"{pipeline} needs the {what} {name!r}, which nothing here registers. If it is yours, "
        "name the Python file that registers it with --code; in a program, import that file first."
    )


def one_line(message: str) -> str:
    """Join the lines of a message, and leave out the end of a long one."""
    return textwrap.shorten(message, width=400, placeholder=" ...")


def _find_plugin(function: str) -> str | None:
    found = _PLUGIN.match(function)
    return found[1] if found else None


def _find_plugins(pipeline: str, factory: str) -> Iterator[str]:
    """Yield the plugins whose functions the components of a factory use."""

    def walk(block: Any) -> Iterator[str]:
        for key, value in block.items() if isinstance(block, dict) else ():
            if key.startswith("@") and (plugin := _find_plugin(str(value))):
                yield plugin
            yield from walk(value)

    try:
        components = read_config(pipeline)["components"]
    except ConfigError:  # it may be a package of another environment
        return
    for component in components.values():
        if component.get("factory") == factory:
            yield from walk(component)


def import_code(path: str | Path | None) -> None:
    """Import a Python file, so that spaCy knows the components and functions that it registers.

    path: `None` for none.
    Raises ConfigError if it cannot be imported.
    """
    if path is None:
        return
    path = Path(path)
    if not path.is_file() or path.suffix != ".py":
        raise ConfigError(f"No code at {path}: expected a Python file, whose name ends with .py.")
    try:
        import_file("python_code", path)
    except Exception as error:  # it is the user's, and may fail in any way
        lines = [
            frame.lineno
            for frame in traceback.extract_tb(error.__traceback__)
            if Path(frame.filename).resolve() == path.resolve()
        ]
        where = f", line {lines[-1]}" if lines else ""
        raise ConfigError(
            f"{path}{where}: the code cannot be imported: {type(error).__name__}: {error}"
        ) from error


def pipeline_directory(pipeline: str) -> Path:
    """Find the directory of a saved pipeline, or of a package, that has its config."""
    check_pipeline(pipeline)
    if not is_package(pipeline):
        return Path(pipeline)
    package = get_package_path(pipeline)
    meta = load_meta(package / "meta.json")
    return package / f"{meta['lang']}_{meta['name']}-{meta['version']}"


def pair_pipes(config: Mapping[str, Any]) -> list[str]:
    """List the pipes of a config that read texts in pairs, and do nothing for other documents."""
    components = config.get("components", {})
    return [n for n, each in components.items() if each.get("factory") in PAIR_FACTORIES]


def read_config(pipeline: str) -> dict[str, Any]:
    """Read the config of a saved pipeline or of a package, with its variables filled in.

    Raises ConfigError if it is missing or damaged.
    """
    path = pipeline_directory(pipeline) / "config.cfg"
    try:
        return load_config(path, interpolate=True)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path} cannot be read: {one_line(str(error))}. Save or copy the pipeline again."
        ) from error


def check_pipeline(pipeline: str) -> None:
    """Raise ConfigError if `pipeline` is neither a saved pipeline nor an installed package."""
    if is_package(pipeline) or (Path(pipeline) / "meta.json").is_file():
        return
    if (Path(pipeline) / "config.json").is_file():
        raise ConfigError(
            f"{pipeline} is a model of transformers, and no spaCy pipeline. "
            "'spacy distil convert' makes one of a classifier."
        )
    if Path(pipeline).exists():
        raise ConfigError(
            f"{pipeline} is not a saved spaCy pipeline: it has no meta.json. "
            "`spacy train` saves one as model-best."
        )
    raise ConfigError(
        f"No pipeline {pipeline!r}: expected the directory of a saved spaCy pipeline, "
        "or the name of an installed pipeline package. (A model on the Hugging Face hub is named "
        "with its owner, as owner/model.)"
    )


def count_bytes(path: Path) -> int:
    """Return the size of all files under a directory."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
