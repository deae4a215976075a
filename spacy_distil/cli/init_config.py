"""`spacy distil init-config`: write a commented config to start from."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from spacy.cli._util import string_to_list
from spacy.cli.init_config import InitValues, Optimizations
from spacy.util import load_config_from_str
from wasabi import msg

from spacy_distil.cli.app import distil_cli
from spacy_distil.cli.configs import (
    DEFAULT_TEACHER,
    PIPES,
    encoder_config,
    pipeline_config,
    training_config,
)
from spacy_distil.cli.from_config import swapped_config
from spacy_distil.cli.options import is_given
from spacy_distil.cli.teacher_pipes import read_teacher_pipes
from spacy_distil.encoding.language import describe_foreign
from spacy_distil.encoding.pieces import PieceTokenizer
from spacy_distil.errors import ConfigError, friendly_errors
from spacy_distil.runs.files import write_text


class Kind(str, Enum):
    """The command that a config is for."""

    encoder = "encoder"
    pipeline = "pipeline"
    train = "train"


# Parameters by the options that set them, for each kind.
_PIPELINE_OPTIONS = {
    "--lang": "lang",
    "--pipeline": "pipeline",
    "--encoder": "encoder",
    "--gpu/--cpu": "gpu",
}
OPTIONS: dict[Kind, dict[str, str]] = {
    Kind.encoder: {"--teacher": "teacher", "--corpus": "corpus"},
    Kind.pipeline: {
        **_PIPELINE_OPTIONS,
        "--teacher": "teacher",
        "--corpus": "corpus",
        "--text": "text",
    },
    Kind.train: {
        **_PIPELINE_OPTIONS,
        "--optimize": "optimize",
        "--corpus": "corpus",
        "--from": "source",
    },
}


@distil_cli.command("init-config")
def init_config_cli(
    ctx: typer.Context,
    kind: Annotated[Kind, typer.Argument(help="The command that the config is for.")],
    output: Annotated[Path, typer.Argument(help="File to write, or - to print it.")] = Path("-"),
    teacher: Annotated[
        str | None,
        typer.Option(
            "--teacher",
            help="encoder: directory or hub name of the teacher encoder. Default: "
            f"{DEFAULT_TEACHER}. pipeline: directory or package of the teacher pipeline, to take "
            "over its language and its pipes; or directory or hub name of a fine-tuned model of "
            "transformers, with --lang.",
        ),
    ] = None,
    lang: Annotated[
        str,
        typer.Option(
            "--lang",
            "-l",
            help="pipeline, train: two-letter code of the language. With --teacher, the teacher's "
            "unless you give one.",
        ),
    ] = InitValues.lang,
    pipeline: Annotated[
        str,
        typer.Option(
            "--pipeline",
            "-p",
            help="pipeline, train: names of the pipes with commas between them, without the "
            f"transformer: {', '.join(PIPES)}. With --teacher, names of the teacher's pipes "
            "too, and all of them unless you name some.",
        ),
    ] = ",".join(InitValues.pipeline),
    encoder: Annotated[
        str | None,
        typer.Option(
            "--encoder",
            help="pipeline, train: directory or hub name of an encoder. A distilled pipeline that "
            "starts from the teacher's layers does not need it. Default: by --lang and, for train, "
            "--optimize.",
        ),
    ] = None,
    optimize: Annotated[
        Optimizations,
        typer.Option(
            "--optimize",
            "-o",
            help="train: efficiency, for a small encoder, or accuracy, for a full-size one. It "
            "sets the learning rate of the encoder, and the default of --encoder.",
        ),
    ] = InitValues.optimize,
    gpu: Annotated[
        bool, typer.Option("--gpu/--cpu", "-G", help="pipeline, train: device to train on.")
    ] = InitValues.gpu,
    corpus: Annotated[
        list[Path] | None,
        typer.Option(
            "--corpus",
            "-c",
            help="Corpus to learn from. The config names it; steps, warm-up, size of batches and "
            "evaluations fit it. pipeline, train: a .spacy file or a directory of them. encoder: a "
            ".txt, .jsonl or .spacy file or a directory of them; may be repeated.",
        ),
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option(
            "--text",
            help="pipeline: text without annotation, a .txt, .jsonl or .spacy file or a directory "
            "of them. Used as --corpus is.",
        ),
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option(
            "--from",
            help="train: config of your own. The new config has a transformer in place of its "
            "tok2vec or spacy-transformers encoder, and keeps the rest.",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", "-F", help="Replace an existing file.")] = False,
) -> None:
    """Write a commented config with every setting.

    The kinds are the commands that read the config: "encoder" and "pipeline" for 'spacy distil
    encoder' and 'spacy distil pipeline', "train" for 'spacy train'. "train" takes the options of
    'spacy init config':

    \b
      python -m spacy distil init-config train train.cfg --lang de --pipeline ner,textcat --gpu
      python -m spacy train train.cfg --output DIR --paths.train train.spacy --paths.dev dev.spacy

    Without --corpus, the steps fit about 200,000 words on a CPU and 800,000 on a GPU. Fewer words
    need smaller batches and a shorter warm-up: name the corpus with --corpus.

    With --from, "train" swaps the encoder of a config of your own:

    \b
      python -m spacy distil init-config train new.cfg --from my_cnn.cfg --corpus train.spacy

    With --teacher, "pipeline" reads language and pipes from a trained pipeline, by its path or
    package. The student's pipes get the names and kinds of the teacher's; 'parser' and 'ner' get
    its shape too, to start from its weights. The config copies pipes without a model, such as an
    attribute ruler, from the teacher. It leaves out disabled pipes and kinds that cannot learn from
    a teacher, and the command names them:

    \b
      python -m spacy distil init-config pipeline student.cfg --teacher training/model-best
    """
    with friendly_errors():
        refuse_options(ctx, kind)
        notes: list[str] = []
        warnings: list[str] = []
        corpora = corpus or []
        if kind is not Kind.encoder and len(corpora) > 1:
            raise ConfigError(
                f"--corpus: 'init-config {kind.value}' takes one path. Give a directory that has "
                "all files in it."
            )
        train = corpora[0] if corpora else None
        if kind is Kind.encoder:
            written = encoder_config(teacher or DEFAULT_TEACHER, corpus=corpora)
        elif kind is Kind.pipeline:
            own_lang = lang if is_given(ctx, "lang") else None
            pipes = read_teacher_pipes(teacher, own_lang) if teacher else None
            written = pipeline_config(
                lang=own_lang,
                pipes=string_to_list(pipeline) if is_given(ctx, "pipeline") else None,
                encoder=encoder,
                gpu=gpu,
                teacher=pipes,
                corpus=train,
                text=text,
            )
            if pipes:
                notes = pipes.notes()
                warnings = pipes.differences(load_config_from_str(written)["components"])
        elif source is not None:
            for option, name in {"--lang": "lang", "--pipeline": "pipeline"}.items():
                if is_given(ctx, name):
                    raise ConfigError(f"{option}: the config of --from has its own.")
            written, notes = swapped_config(
                source,
                encoder=encoder,
                optimize=optimize.value,
                gpu=gpu if is_given(ctx, "gpu") else None,
                corpus=train,
            )
        else:
            written = training_config(
                lang=lang,
                pipes=string_to_list(pipeline),
                encoder=encoder,
                optimize=optimize.value,
                gpu=gpu,
                corpus=train,
            )
        if kind is not Kind.encoder and (foreign := foreign_encoder(written)):
            warnings.append(foreign)
        if str(output) == "-":
            print(written, end="")
            for note in [*notes, *warnings]:
                typer.echo(note, err=True)
            return
        if output.exists() and not force:
            raise ConfigError(f"{output} exists. Replace it with --force, or give another name")
        write_text(output, written)
    for note in notes:
        msg.info(note)
    for warning in warnings:
        msg.warn(warning)
    msg.good(f"Wrote {output}")


def foreign_encoder(text: str) -> str | None:
    """Say that the encoder in a config is made for another language than the pipeline, or None.

    text: the config. An encoder that is no directory is not looked at.
    """
    config = load_config_from_str(text, interpolate=True)
    name = config["paths"]["encoder"]
    path = Path(name) / "tokenizer.json"
    if not path.is_file():
        return None
    tokenizer = PieceTokenizer.from_str(path.read_bytes())
    return describe_foreign(tokenizer, name, config["nlp"]["lang"])


def refuse_options(ctx: typer.Context, kind: Kind) -> None:
    """Raise ConfigError if options are given that this kind does not have."""
    names = {option: name for options in OPTIONS.values() for option, name in options.items()}
    given = [option for option in names if is_given(ctx, names[option])]
    unknown = [option for option in given if option not in OPTIONS[kind]]
    if unknown:
        raise ConfigError(
            f"{', '.join(unknown)}: 'init-config {kind.value}' takes no such option, only "
            f"{', '.join(OPTIONS[kind])}. Change other settings in the config that it writes"
        )
