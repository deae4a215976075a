"""`spacy distil init-config`: write a commented config to start from."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from spacy.cli._util import string_to_list
from spacy.cli.init_config import InitValues, Optimizations
from wasabi import msg

from spacy_distil.cli import distil_cli
from spacy_distil.cli.encoder_template import ENCODER_CONFIG
from spacy_distil.cli.pipeline_template import PIPELINE_CONFIG
from spacy_distil.cli.train_template import PIPES, training_config
from spacy_distil.errors import ConfigError, friendly_errors


class Kind(str, Enum):
    """What a config is for."""

    encoder = "encoder"
    pipeline = "pipeline"
    train = "train"


TEMPLATES = {Kind.encoder: ENCODER_CONFIG, Kind.pipeline: PIPELINE_CONFIG}
# Parameters of the kind "train" alone, by the options that set them.
TRAIN_OPTIONS = {
    "--lang": "lang",
    "--pipeline": "pipeline",
    "--encoder": "encoder",
    "--optimize": "optimize",
    "--gpu/--cpu": "gpu",
}


@distil_cli.command("init-config")
def init_config_cli(
    ctx: typer.Context,
    kind: Annotated[Kind, typer.Argument(help="What the config is for.")],
    output: Annotated[Path, typer.Argument(help="File to write, or - to print it.")] = Path("-"),
    lang: Annotated[
        str, typer.Option("--lang", "-l", help="train: two-letter code of the language.")
    ] = InitValues.lang,
    pipeline: Annotated[
        str,
        typer.Option(
            "--pipeline",
            "-p",
            help="train: comma-separated names of the pipes, without the transformer: "
            f"{', '.join(PIPES)}.",
        ),
    ] = ",".join(InitValues.pipeline),
    encoder: Annotated[
        str | None,
        typer.Option(
            "--encoder",
            help="train: directory or hub name of a teacher or student encoder. Left out: one that "
            "suits --lang and --optimize.",
        ),
    ] = None,
    optimize: Annotated[
        Optimizations,
        typer.Option(
            "--optimize",
            "-o",
            help="train: efficiency, with a small encoder, or accuracy, with a full-size one. "
            "Decides which encoder, where none is named, and its learning rate.",
        ),
    ] = InitValues.optimize,
    gpu: Annotated[
        bool, typer.Option("--gpu/--cpu", "-G", help="train: what it is to be trained on.")
    ] = InitValues.gpu,
    force: Annotated[bool, typer.Option("--force", "-F", help="Replace an existing file.")] = False,
) -> None:
    """Write a commented config with every setting.

    Kinds: "encoder", for 'spacy distil encoder'; "pipeline", for 'spacy distil pipeline'; "train",
    for 'spacy train'. The last takes the options of 'spacy init config':

    \b
      python -m spacy distil init-config train train.cfg --lang de --pipeline ner,textcat --gpu
      python -m spacy train train.cfg --output DIR --paths.train train.spacy --paths.dev dev.spacy
    """
    with friendly_errors():
        if kind is Kind.train:
            text = training_config(
                lang=lang,
                pipes=string_to_list(pipeline),
                encoder=encoder,
                optimize=optimize.value,
                gpu=gpu,
            )
        else:
            refuse_options(ctx, kind)
            text = TEMPLATES[kind]
        if str(output) == "-":
            print(text, end="")
            return
        if output.exists() and not force:
            raise ConfigError(f"{output} exists. Replace it with --force, or give another name")
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(text, encoding="utf-8")
    msg.good(f"Wrote {output}")


def refuse_options(ctx: typer.Context, kind: Kind) -> None:
    """Raise ConfigError where options are given that this kind does not have."""
    given = [option for option, name in TRAIN_OPTIONS.items() if is_given(ctx, name)]
    if given:
        raise ConfigError(
            f"{', '.join(given)}: 'init-config {kind.value}' takes no such option, only "
            "'init-config train' does. Write the config, and change what is to be otherwise in it"
        )


def is_given(ctx: typer.Context, name: str) -> bool:
    """Whether a parameter was set on the command line."""
    # By its name: newer versions of typer come with a click of their own.
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"
