"""`spacy distil convert`: make a pipeline of ours from a transformer pipeline of another package,
or from a fine-tuned model of transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from wasabi import msg

from spacy_distil.cli.app import distil_cli
from spacy_distil.cli.options import (
    BatchSize,
    Code,
    Force,
    PipelineOutput,
    TxtDocumentsChoice,
    TxtDocumentsOption,
    is_given,
)
from spacy_distil.errors import ConfigError, friendly_errors
from spacy_distil.pipelines import check_pipeline, import_code

if TYPE_CHECKING:
    from spacy_distil.export.quantize import Quantization

# Parameters by their options, for one kind of source alone.
_PIPELINE_OPTIONS = {
    "--private-copies/--no-private-copies": "private_copies",
    "--trf-data": "trf_data",
}
_MODEL_OPTIONS = {"--lang": "lang", "--scheme": "scheme", "--pairs": "pairs"}


@distil_cli.command("convert", no_args_is_help=True)
def convert_cli(
    ctx: typer.Context,
    pipeline: Annotated[
        str,
        typer.Argument(
            metavar="PIPELINE",
            help="Trained pipeline of spacy-transformers or spacy-curated-transformers: directory "
            "or package. Or a fine-tuned model of transformers: directory or hub name.",
        ),
    ],
    output: PipelineOutput,
    lang: Annotated[
        str | None,
        typer.Option(
            "--lang", "-l", help="Model of transformers: code of the language, 'xx' for many."
        ),
    ] = None,
    scheme: Annotated[
        str | None,
        typer.Option(
            "--scheme",
            help="Model of transformers that finds entities: BILUO (also for BIOES), IOB2, IOB1 or "
            "IO. Default: as its labels and its predictions say.",
        ),
    ] = None,
    pairs: Annotated[
        bool,
        typer.Option(
            "--pairs",
            help="Model of transformers: it compares two texts. Labels such as 'entailment' say "
            "so, too.",
        ),
    ] = False,
    corpus: Annotated[
        Path | None,
        typer.Option(
            "--corpus",
            help="Documents to compare both on: .spacy (pipelines are scored on annotated ones), "
            ".txt or .jsonl. Default: a few sentences.",
        ),
    ] = None,
    limit: Annotated[
        int, typer.Option("--limit", help="Compare the first N documents only; 0 for all.")
    ] = 0,
    min_agreement: Annotated[
        float,
        typer.Option(
            "--min-agreement",
            help="Write nothing if the predictions of a pipe agree less (0 to 1), in documents "
            "that both pipelines encode in the same windows.",
        ),
    ] = 0.98,
    window: Annotated[
        int | None,
        typer.Option(
            "--window",
            help="Most pieces encoded together. Default: as close as possible to the windows that "
            "the pipeline was trained with.",
        ),
    ] = None,
    private_copies: Annotated[
        bool,
        typer.Option(
            "--private-copies/--no-private-copies",
            help="If a pipe pools pieces differently from the other pipes: give it its own copy of "
            "the encoder, or refuse the conversion.",
        ),
    ] = True,
    txt_documents: TxtDocumentsOption = TxtDocumentsChoice.auto,
    trf_data: Annotated[
        bool,
        typer.Option(
            "--trf-data",
            help="Set doc._.trf_data, as the original does. Documents take more memory.",
        ),
    ] = False,
    quantize: Annotated[
        bool,
        typer.Option(
            "--quantize",
            help="Then quantize the pipeline to int8, as 'spacy distil quantize' does by default.",
        ),
    ] = False,
    batch_size: BatchSize = 64,
    code: Code = None,
    force: Force = False,
) -> None:
    """Convert a pipeline of spacy-transformers or spacy-curated-transformers, such as
    en_core_web_trf, or a fine-tuned model of transformers: the same weights, on a
    distil_transformer.

    The component "transformer" or "curated_transformer" becomes a "distil_transformer" of the same
    name, and its listeners become ours. Every other component stays as it is. The converted
    pipeline is faster, needs neither package, and can be quantized.

    Predictions are the same if both pipelines encode the same windows. That is so for documents
    that fit into one window of the original: with strided_spans, up to `window` tokens, and 1.5
    times as many pieces; with doc_spans, as many pieces as the encoder takes; with sent_spans, one
    sentence; with WithStridedSpans, up to `stride` pieces. The new pipeline splits longer documents
    at other places, and truncates nothing. Measure the difference on your own documents with
    --corpus.

    A token classifier of transformers becomes a distil_ner, a tagger or a morphologizer, a text
    classifier a textcat or textcat_multilabel, or a distil_pair if it compares two texts, a model
    that answers questions a distil_qa, an encoder a distil_transformer alone. Name the language,
    whose tokens the pipeline has:

    \b
      python -m spacy distil convert dslim/bert-base-NER training/ner --lang en

    With --quantize, OUT gets the int8 pipeline alone, and only if both steps succeed.

    If something cannot be converted, the command names it and writes nothing.
    """
    with friendly_errors():
        from spacy_distil.hugging_face import is_hugging_face

        import_code(code)
        settings: dict[str, Any] = {
            "corpus": corpus,
            "limit": limit,
            "window": window,
            "txt_documents": txt_documents.value,
            "min_agreement": min_agreement,
            "force": force,
            "log": msg.info,
        }
        if is_hugging_face(pipeline):
            _refuse_options(ctx, _PIPELINE_OPTIONS, "a spaCy pipeline")
            settings |= {"lang": lang, "scheme": scheme, "pairs": pairs}
            convert_model(pipeline, output, batch_size if quantize else None, settings)
        else:
            check_pipeline(pipeline)  # before options, which may belong to a model of that name
            _refuse_options(ctx, _MODEL_OPTIONS, "a model of transformers")
            settings |= {"private_copies": private_copies, "trf_data": trf_data}
            convert_pipeline(pipeline, output, batch_size, settings, quantizes=quantize)
    if corpus is None:
        msg.warn("Nothing was compared on text of yours: name some with --corpus.")
    msg.good(f"Saved the {'quantized' if quantize else 'converted'} pipeline to {output}")


def _refuse_options(ctx: typer.Context, options: Mapping[str, str], source: str) -> None:
    """Raise ConfigError if options are given that only another source has.

    options: names of parameters, by option.
    """
    given = [option for option, name in options.items() if is_given(ctx, name)]
    if given:
        raise ConfigError(f"{', '.join(given)}: only for {source}. Leave it out.")


def convert_pipeline(
    pipeline: str, output: Path, batch_size: int, settings: Mapping[str, Any], *, quantizes: bool
) -> None:
    """Convert a pipeline of another package, and print the results.

    settings: more arguments of `convert`.
    """
    from spacy_distil.export.convert import TRF_DATA, convert, convert_and_quantize

    quantization = None
    if quantizes:
        conversion, quantization = convert_and_quantize(
            pipeline, output, batch_size=batch_size, **settings
        )
    else:
        conversion = convert(pipeline, output, batch_size=batch_size, **settings)
    from spacy_distil.export import conversion_check

    print(conversion_check.to_text(conversion.comparison))
    _print_quantization(quantization)
    for note in conversion.notes:
        msg.warn(f"{note}.")
    if conversion.shared and not settings["trf_data"]:
        components = dict.fromkeys(conversion.shared, TRF_DATA)
        msg.warn(
            "The pipeline does not set doc._.trf_data. If your code reads it, convert with "
            "--trf-data, or load the pipeline with:"
        )
        print(f"spacy.load({str(output)!r}, config={ {'components': components} })")


def convert_model(
    name: str, output: Path, batch_size: int | None, settings: Mapping[str, Any]
) -> None:
    """Convert a model of transformers, and print the results.

    batch_size: of the comparison with the int8 pipeline; `None` not to quantize.
    settings: more arguments of `convert_model` in `export`.
    """
    from spacy_distil.export import hugging_face, hugging_face_check

    quantization = None
    if batch_size is None:
        conversion = hugging_face.convert_model(name, output, **settings)
    else:
        conversion, quantization = hugging_face.convert_model_and_quantize(
            name, output, batch_size=batch_size, **settings
        )
    print(hugging_face_check.to_text(conversion.check))
    _print_quantization(quantization)
    pipes = ", ".join(f"{pipe} ({factory})" for pipe, factory in conversion.pipes.items())
    msg.info(f"{conversion.architecture}: {pipes}")
    for note in conversion.notes:
        msg.warn(f"{note}.")


def _print_quantization(quantization: Quantization | None) -> None:
    if quantization is not None:
        from spacy_distil.export import quantize_table

        print(f"\n== Quantized ==\n\n{quantize_table.to_text(quantization)}")
