"""`spacy distil annotate`: silver data, a pipeline's annotation of texts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from wasabi import msg

from spacy_distil.cli.app import distil_cli
from spacy_distil.cli.options import Code, TxtDocumentsChoice, TxtDocumentsOption
from spacy_distil.errors import friendly_errors
from spacy_distil.pipelines import import_code


@distil_cli.command("annotate", no_args_is_help=True)
def annotate_cli(
    pipeline: Annotated[
        str,
        typer.Argument(
            metavar="TEACHER",
            help="Pipeline: directory or package. Or a fine-tuned model of transformers: directory "
            "or hub name.",
        ),
    ],
    texts: Annotated[
        list[Path],
        typer.Argument(metavar="TEXTS...", help="Files or directories: .txt, .jsonl or .spacy."),
    ],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="A .spacy file, or with --shard-docs a directory."),
    ],
    shard_docs: Annotated[
        int, typer.Option("--shard-docs", help="Write a directory of files of N documents each.")
    ] = 0,
    min_confidence: Annotated[
        float | None,
        typer.Option(
            "--min-confidence",
            help="Leave out documents with a label, category or span of a lower probability.",
        ),
    ] = None,
    exclusive_cats: Annotated[
        bool,
        typer.Option(
            "--exclusive-cats",
            help="The categories of components other than spaCy's exclude each other.",
        ),
    ] = False,
    limit: Annotated[
        int, typer.Option("--limit", help="Annotate the first N documents only; 0 for all.")
    ] = 0,
    max_words: Annotated[
        int, typer.Option("--max-words", help="Cut documents of more tokens; 0 for none.")
    ] = 0,
    batch_size: Annotated[
        int | None,
        typer.Option(
            "--batch-size",
            help="Documents processed at a time. Default: 256, or 1 with --rate-limit.",
        ),
    ] = None,
    rate_limit: Annotated[
        float | None, typer.Option("--rate-limit", help="Most documents per minute.")
    ] = None,
    retries: Annotated[
        int, typer.Option("--retries", help="Times that a document is tried again after an error.")
    ] = 0,
    txt_documents: TxtDocumentsOption = TxtDocumentsChoice.auto,
    lang: Annotated[
        str | None,
        typer.Option(
            "--lang", "-l", help="Model of transformers: code of the language, 'xx' for many."
        ),
    ] = None,
    gpu_id: Annotated[
        int, typer.Option("--gpu-id", "-g", help="GPU for spaCy's own layers; -1 for the CPU.")
    ] = -1,
    code: Code = None,
    force: Annotated[
        bool, typer.Option("--force", "-F", help="Replace the silver data that the output holds.")
    ] = False,
) -> None:
    """Annotate texts with a pipeline, and write silver data that 'spacy train' reads.

    The pipeline may have components of any kind. The files hold the words and their annotation, and
    no user data. Categories become 0 or 1.

    A killed command goes on where it was: give the same command again. Documents that are written
    are not annotated again.
    """
    with friendly_errors():
        from spacy_distil.distillation.pipeline.silver_data import annotate_texts

        import_code(code)
        silver = annotate_texts(
            pipeline,
            texts,
            output,
            shard_docs=shard_docs,
            min_confidence=min_confidence,
            exclusive_cats=exclusive_cats,
            limit=limit,
            max_words=max_words,
            batch_size=batch_size,
            rate_limit=rate_limit,
            retries=retries,
            txt_documents=txt_documents.value,
            lang=lang,
            gpu_id=gpu_id,
            force=force,
            log=msg.info,
        )
    if silver.left_out:
        msg.warn(f"{silver.left_out:,} documents are left out: a pipe is not sure of them")
    msg.good(f"Saved {silver.documents:,} documents, {silver.words:,} tokens, to {output}")
