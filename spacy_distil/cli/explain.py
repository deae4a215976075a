"""`spacy distil explain`: show which tokens made a pipeline predict what it predicts."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from wasabi import msg

from spacy_distil.cli.app import distil_cli
from spacy_distil.cli.options import (
    Code,
    TrainedPipeline,
    TxtDocumentsChoice,
    TxtDocumentsOption,
)
from spacy_distil.errors import ConfigError, friendly_errors
from spacy_distil.pipelines import import_code, load_pipeline


class MethodChoice(str, Enum):
    """How explanations are computed."""

    auto = "auto"
    integrated_gradients = "integrated_gradients"
    occlusion = "occlusion"


@distil_cli.command("explain", no_args_is_help=True)
def explain_cli(
    pipeline: TrainedPipeline,
    text: Annotated[str | None, typer.Option("--text", help="The text to explain.")] = None,
    texts: Annotated[
        Path | None,
        typer.Option(
            "--texts",
            metavar="FILE",
            help="Texts to explain: .spacy, .txt, or .jsonl with a text in each line.",
        ),
    ] = None,
    limit: Annotated[
        int, typer.Option("--limit", help="Only the first N documents of --texts; 0 for all.")
    ] = 20,
    txt_documents: TxtDocumentsOption = TxtDocumentsChoice.auto,
    target: Annotated[
        str | None,
        typer.Option(
            "--target",
            help="cats:LABEL, or cats for the most probable; ents; tag or pos, of all tokens, or "
            "of one by its number (tag:3) or its text (tag:WORD). Default: the first of cats, "
            "ents, tag and pos that the pipeline predicts.",
        ),
    ] = None,
    method: Annotated[
        MethodChoice,
        typer.Option(
            "--method",
            help="integrated_gradients needs an encoder on the torch engine; occlusion hides one "
            "token after another, in any pipeline. auto: the first of these that is possible.",
        ),
    ] = MethodChoice.auto,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="HTML file to write instead of printing."),
    ] = None,
    code: Code = None,
) -> None:
    """Show which tokens speak for a prediction, and which against it.

    Explained are the classes of a textcat or textcat_multilabel, the entities of a distil_ner, and
    the tags of a tagger or morphologizer. Numbers are parts of the log-odds of a prediction.
    """
    with friendly_errors():
        from spacy_distil.runs.files import write_text
        from spacy_distil.runs.outputs import check_file
        from spacy_distil.text.documents import read_documents
        from spacy_distil.trust.explanations.explain import choose_method, explain
        from spacy_distil.trust.explanations.explanation import Explanation
        from spacy_distil.trust.explanations.html import to_page
        from spacy_distil.trust.explanations.targets import find_pipe, read_request
        from spacy_distil.trust.explanations.terminal import to_text

        if (text is None) == (texts is None):
            raise ConfigError("Name the text with --text, or a file of texts with --texts.")
        if output is not None:
            check_file(output)
        import_code(code)
        nlp = load_pipeline(pipeline)
        if text is not None:
            docs = [nlp.make_doc(text)]
        else:
            assert texts is not None
            docs = read_documents(
                texts, nlp, limit=limit, txt_documents=txt_documents.value, log=msg.info
            ).docs
        # Mistakes that no document makes good.
        choose_method(nlp, find_pipe(nlp, read_request(nlp, target)), method.value)
        found: dict[str, list[Explanation]] = {}
        for i, doc in enumerate(docs, start=1):
            name = f"Document {i}"
            try:
                one = explain(nlp, doc, target, method.value)
            except ConfigError as error:
                if text is not None:
                    raise
                msg.warn(f"{name} is left out. {error}")
                continue
            found[name] = [one] if isinstance(one, Explanation) else one
            if output is None:
                if texts is not None:
                    print(f"\n{name}\n")
                for each in found[name]:
                    print(to_text(each))
        if output is not None and found:
            write_text(output, to_page(f"Explanations of {nlp.meta['name']}", found.items()))
    if not any(found.values()):
        msg.warn("There is nothing to explain in these documents.")
    if output is not None and not found:
        raise typer.Exit(1)
    if output is not None:
        msg.good(f"Saved the explanations to {output}")
