"""Options that several commands share."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
from spacy.cli._util import NoSuchOption, parse_config_overrides

from spacy_distil.errors import ConfigError

Code = Annotated[
    Path | None,
    typer.Option(
        "--code",
        "-c",
        help="Python file to import first, with the components and functions that it registers.",
    ),
]
# Of commands that take any setting of a config as an option, such as --training.max_steps 1000.
OVERRIDES: dict[str, Any] = {"allow_extra_args": True, "ignore_unknown_options": True}


def parse_overrides(arguments: list[str]) -> dict[str, Any]:
    """Parse settings by their dotted names, as spaCy does. Raises ConfigError for other options."""
    try:
        return parse_config_overrides(arguments)
    except NoSuchOption as error:  # typer prints only those of its own copy of click
        raise ConfigError(
            f"{error.format_message()} Settings have dotted names, such as --training.max_steps 10."
        ) from error


# Of distillation

RunOutput = Annotated[
    Path,
    typer.Option("--output", "--output-path", "-o", help="Directory of the run and its result."),
]
Resume = Annotated[
    bool, typer.Option("--resume", "-r", help="Continue the run that the output directory holds.")
]
ForceRun = Annotated[
    bool, typer.Option("--force", "-F", help="Replace the run that the output directory holds.")
]
Device = Annotated[
    int | None,
    typer.Option(
        "--gpu-id", "-g", help="CUDA device, or -1 for the CPU. Default: an accelerator, if any."
    ),
]

# Of students that a pipeline teaches

Teacher = Annotated[
    str, typer.Argument(metavar="TEACHER", help="Trained pipeline: directory or package.")
]
StudentConfig = Annotated[
    Path,
    typer.Argument(metavar="CONFIG", help="Config of the student; see 'init-config pipeline'."),
]
SpacyDevice = Annotated[
    int, typer.Option("--gpu-id", "-g", help="GPU for spaCy's own layers; -1 for the CPU.")
]

# Of pipelines that are made from others

TrainedPipeline = Annotated[
    str, typer.Argument(metavar="PIPELINE", help="Trained pipeline: directory or package.")
]
ReportFile = Annotated[
    Path | None, typer.Option("--report", help="JSON file for all measurements.")
]
PipelineOutput = Annotated[
    Path, typer.Argument(metavar="OUT", help="Directory for the new pipeline.")
]
Force = Annotated[bool, typer.Option("--force", "-F", help="Replace the pipeline that OUT holds.")]
BatchSize = Annotated[int, typer.Option("--batch-size", help="Documents processed at a time.")]

# Of text


class TxtDocumentsChoice(str, Enum):
    """How .txt files are divided into documents."""

    auto = "auto"
    lines = "lines"
    blank_lines = "blank_lines"


TxtDocumentsOption = Annotated[
    TxtDocumentsChoice,
    typer.Option(
        "--txt-documents",
        help="Documents of a .txt file: one in each line, or divided by blank lines. auto: by "
        "blank lines if the file has any.",
    ),
]

# Of measurements

Repeats = Annotated[int, typer.Option("--repeats", help="Timed rounds; their median is reported.")]
LoadRepeats = Annotated[
    int, typer.Option("--load-repeats", help="Timed starts, each in a new process.")
]
Title = Annotated[str, typer.Option("--title", help="Heading of the tables and the plot.")]


NamedPipelines = Annotated[
    list[str],
    typer.Argument(
        metavar="PIPELINE...",
        help="Any pipelines that spaCy loads, by directory or package. NAME=PIPELINE sets the "
        "name in the tables.",
    ),
]


def name_pipelines(values: list[str]) -> dict[str, str]:
    """Parse arguments of the form PIPELINE or NAME=PIPELINE. RETURNS: pipelines by name."""
    pipelines: dict[str, str] = {}
    for value in values:
        name, equals, pipeline = (part.strip() for part in value.partition("="))
        if not equals or Path(value).exists():
            name = pipeline = value
        if not (name and pipeline):
            raise ConfigError(f"{value}: expected PIPELINE or NAME=PIPELINE.")
        if name in pipelines:
            raise ConfigError(
                f"{value}: another pipeline is named {name!r}, too. Name them NAME=PATH."
            )
        pipelines[name] = pipeline
    return pipelines


def is_given(ctx: typer.Context, name: str) -> bool:
    """Whether a parameter was set on the command line."""
    # By its name: newer versions of typer come with a click of their own.
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"
