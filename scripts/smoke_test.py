"""Install a packaged pipeline into a fresh environment, and run it on a text.

    python scripts/smoke_test.py packages --constraints constraints.txt --without torch

Makes a virtual environment, installs into it the one wheel under PACKAGES_DIR and spacy-distil from
its sources, with the extras that the wheel asks for, and loads the pipeline from a directory that
has nothing to do with the project. Says how large the environment is, and how long it takes from
the start of the process to the first document. Ends with a status other than 0, and with what was
printed, where anything of that fails, or where a module of --without can be imported.
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

TEXT = "Ada Lovelace moved from London to Paris. The trains were late, but the soup was good."

# Runs in the fresh environment: argv is the package's name, the text and the modules that must be
# missing.
CHECK = """
import importlib, importlib.util, sys
import spacy

name, text, *without = sys.argv[1:]
found = [module for module in without if importlib.util.find_spec(module)]
if found:
    sys.exit(f"The pipeline is to run without {', '.join(found)}, but its wheel brings that along.")
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
# The same without what only a check does; argv is the package's name and the text.
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
    parser.add_argument("--text", default=TEXT, help="what the pipeline runs on")
    parser.add_argument(
        "--without",
        action="append",
        default=[],
        metavar="MODULE",
        help="must not be there once the wheel is installed; can be repeated",
    )
    args = parser.parse_args(argv)
    try:
        smoke_test(
            find_wheel(args.packages_dir),
            project=args.project,
            constraints=args.constraints,
            text=args.text,
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
        with _timed("Fresh virtual environment"):
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
    """Files at the top of `project`, and its package.

    pip builds where the sources lie: a copy keeps its leftovers out of the project, and theirs out
    of the build.
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
    """Size of all files below `directory`; what links point to is not counted."""
    files = (path for path in directory.rglob("*") if not path.is_symlink())
    return sum(path.stat().st_size for path in files if path.is_file())


def _seconds(run: Callable[[], object]) -> float:
    start = perf_counter()
    run()
    return perf_counter() - start


def _run(command: Sequence[str], directory: Path) -> str:
    """What the command printed. Raises SmokeTestError with it where the command fails."""
    environment = {
        name: value
        for name, value in os.environ.items()
        # What could lead back to the environment that runs this.
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
def _timed(what: str) -> Iterator[None]:
    """Print what was done and how long it took, where it did not fail."""
    start = perf_counter()
    yield
    print(f"{what}: {perf_counter() - start:.1f} s", flush=True)


if __name__ == "__main__":
    main()
