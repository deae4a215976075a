"""Install a packaged pipeline into a new environment, and run it on a text.

    python -m scripts.smoke_test packages --corpus test.spacy --constraints constraints.txt
        --without torch

Creates a virtual environment, installs the wheel in PACKAGES_DIR and spacy-distil from its sources
with the extras that the wheel needs, and loads the pipeline from a directory outside the project.
Prints the size of the environment, and the time from the start of a process to the first document.
If a step fails, or a module of --without can be imported, it prints the output and exits with 1.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from time import perf_counter

# The most of a document that the pipeline runs on, in characters.
MAX_CHARACTERS = 1000

# Runs in the new environment. argv: name of the package, text, and modules that must be missing.
CHECK = """
import importlib, importlib.util, sys

name, text, *without = sys.argv[1:]
present = [module for module in without if importlib.util.find_spec(module)]
if present:
    sys.exit(f"The pipeline must run without {', '.join(present)}, but its wheel installs that.")
import spacy
doc = importlib.import_module(name).load()(text)
again = spacy.load(name)(text)
for one in (doc, again):
    print("tokens:", " ".join(f"{token.text}/{token.pos_ or '-'}" for token in one))
    print("ents:", [(ent.text, ent.label_) for ent in one.ents])
    print("cats:", {label: round(score, 3) for label, score in one.cats.items()})
if not len(doc):
    sys.exit("The text has no tokens.")
if [(t.pos_, t.ent_type_) for t in doc] != [(t.pos_, t.ent_type_) for t in again]:
    sys.exit("import and spacy.load gave pipelines that differ.")
"""
# The same without the checks. argv: name of the package, text.
COLD_START = "import sys, spacy; spacy.load(sys.argv[1])(sys.argv[2])"
COLD_STARTS = 3


class SmokeTestError(Exception):
    """The pipeline cannot be installed or run."""


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("packages_dir", type=Path, help="where `spacy package` wrote to")
    parser.add_argument("--project", type=Path, default=Path(), help="spacy-distil's sources")
    parser.add_argument("--constraints", type=Path, help="pip constraints file")
    texts = parser.add_mutually_exclusive_group(required=True)
    texts.add_argument("--corpus", type=Path, help="run on the first document of this .spacy file")
    texts.add_argument("--text", help="text to run the pipeline on")
    parser.add_argument(
        "--without",
        action="append",
        default=[],
        metavar="MODULE",
        help="module that the wheel must not install; may be repeated",
    )
    args = parser.parse_args(argv)
    try:
        smoke_test(
            find_wheel(args.packages_dir),
            project=args.project,
            constraints=args.constraints,
            text=first_text(args.corpus) if args.text is None else args.text,
            without=args.without,
        )
    except SmokeTestError as error:
        sys.exit(f"Smoke test failed. {error}")


def find_wheel(packages_dir: Path) -> Path:
    """The one wheel that `spacy package --build wheel` wrote.

    packages_dir: its output directory, or the directory of one package in there.
    """
    wheels = sorted({*packages_dir.glob("*/dist/*.whl"), *packages_dir.glob("dist/*.whl")})
    if len(wheels) != 1:
        found = ", ".join(str(wheel) for wheel in wheels) or "none"
        raise SmokeTestError(
            f"Expected one wheel in {packages_dir}/*/dist or {packages_dir}/dist, found {found}. "
            "Build it with `python -m spacy package PIPELINE PACKAGES_DIR --build wheel`, "
            "and delete older ones."
        )
    return wheels[0].resolve()


def first_text(corpus: Path) -> str:
    """The start of the first document that has text."""
    from spacy.tokens import DocBin
    from spacy.vocab import Vocab

    if not corpus.is_file():
        raise SmokeTestError(f"No such file: {corpus}. Run the project's 'corpus' command first.")
    for doc in DocBin().from_disk(corpus).get_docs(Vocab()):
        if doc.text.strip():
            return doc.text[:MAX_CHARACTERS].strip()
    raise SmokeTestError(f"{corpus} has no document with text in it.")


def smoke_test(
    wheel: Path,
    *,
    project: Path,
    constraints: Path | None,
    text: str,
    without: Sequence[str] = (),
) -> None:
    """Raise SmokeTestError where `wheel` cannot be installed, loaded or run on `text`.

    project: directory with the sources of spacy-distil, whose extras the wheel itself asks for.
    without: modules that must not be installed with the wheel.
    """
    if not (project / "setup.cfg").is_file():
        raise SmokeTestError(f"{project} has no setup.cfg: expected spacy-distil's sources there.")
    if constraints is not None and not constraints.is_file():
        raise SmokeTestError(f"No constraints file {constraints}.")
    directory = Path(tempfile.mkdtemp(prefix="smoke-test-"))
    try:
        with _timed("New virtual environment"):
            venv.create(directory / "env", with_pip=True, symlinks=os.name != "nt")
        scripts = "Scripts" if os.name == "nt" else "bin"
        python = directory / "env" / scripts / "python"
        sources = _copy_sources(project.resolve(), directory / "sources")
        install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        if constraints is not None:
            install += ["--constraint", str(constraints.resolve())]
        with _timed(f"Installed {wheel.name} and spacy-distil"):
            _run([*install, str(sources), str(wheel)], directory)
        print(f"Size of the environment: {_count_bytes(directory / 'env') / 1e6:,.0f} MB")
        elsewhere = directory / "elsewhere"
        elsewhere.mkdir()
        # A wheel's file name begins with its distribution, which is the module.
        module = wheel.name.split("-")[0]
        with _timed(f"Loaded and ran {module}"):
            print(_run([str(python), "-c", CHECK, module, text, *without], elsewhere), end="")
        cold = [str(python), "-c", COLD_START, module, text]
        seconds = [_seconds(lambda: _run(cold, elsewhere)) for _ in range(COLD_STARTS)]
        print(
            f"From the start of the process to the first document: {median(seconds):.1f} s "
            f"(median of {COLD_STARTS})"
        )
    finally:
        with _timed("Removed the environment"):
            shutil.rmtree(directory, ignore_errors=True)


def _copy_sources(project: Path, target: Path) -> Path:
    """Copy the package, and the files beside it.

    pip builds in the directory of the sources. A copy keeps the files of the build out of the
    project, and files of earlier builds out of this one.
    """
    target.mkdir()
    for file in project.iterdir():
        if file.is_file():
            shutil.copy(file, target)
    shutil.copytree(
        project / "spacy_distil",
        target / "spacy_distil",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    return target


def _count_bytes(directory: Path) -> int:
    """Size of all files in a directory. Links count as nothing."""
    files = (path for path in directory.rglob("*") if not path.is_symlink())
    return sum(path.stat().st_size for path in files if path.is_file())


def _seconds(run: Callable[[], object]) -> float:
    start = perf_counter()
    run()
    return perf_counter() - start


def _run(command: Sequence[str], directory: Path) -> str:
    """Run a command and return its output. Raises SmokeTestError with the output if it fails."""
    environment = {
        name: value
        for name, value in os.environ.items()
        # These could lead back to the environment that runs this script.
        if name not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__")
    }
    environment["HF_HUB_OFFLINE"] = "1"  # loading a pipeline takes no network
    done = subprocess.run(
        command,
        cwd=directory,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
    )
    if done.returncode != 0:
        shown = " ".join(part if "\n" not in part else "..." for part in command)
        raise SmokeTestError(f"{shown}\nended with code {done.returncode}:\n{done.stdout}")
    return done.stdout


@contextmanager
def _timed(step: str) -> Iterator[None]:
    """Print a step and its time, if it does not fail."""
    start = perf_counter()
    yield
    print(f"{step}: {perf_counter() - start:.1f} s", flush=True)


if __name__ == "__main__":
    main()
