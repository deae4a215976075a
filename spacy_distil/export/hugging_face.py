"""Write a fine-tuned model of transformers as a pipeline of spacy-distil, with the same weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from spacy.language import Language

from spacy_distil.errors import TRAINING, ConfigError, require_all
from spacy_distil.export.hugging_face_check import ModelCheck, check_model
from spacy_distil.export.quantize import NEEDS as QUANTIZING
from spacy_distil.export.quantize import Quantization, quantize_converted
from spacy_distil.hugging_face.load import load_model
from spacy_distil.pipelines import load_pipeline
from spacy_distil.runs.files import atomic_directory
from spacy_distil.runs.outputs import check_output
from spacy_distil.text.documents import Documents, example_documents, read_documents
from spacy_distil.text.plain_text import TxtDocuments


@dataclass(frozen=True)
class ModelConversion:
    """Results of `convert_model`.

    architecture: the class of the model.
    pipes: of the pipeline, by name, with their factories.
    notes: decisions that the user may want to know.
    check: agreement with transformers' own forward.
    """

    architecture: str
    pipes: dict[str, str]
    notes: list[str]
    check: ModelCheck


def convert_model(
    name: str | Path,
    output: str | Path,
    *,
    lang: str | None,
    scheme: str | None = None,
    corpus: str | Path | None = None,
    limit: int = 0,
    window: int | None = None,
    pairs: bool = False,
    min_agreement: float = 0.98,
    txt_documents: TxtDocuments = "auto",
    force: bool = False,
    log: Callable[[str], Any] = lambda message: None,
) -> ModelConversion:
    """Write a model of transformers as a pipeline, if both compute the same.

        result = convert_model("dslim/bert-base-NER", "training/ner", lang="en")
        nlp = spacy.load("training/ner")

    name: directory or hub name of a classifier of tokens, texts or pairs of texts, of a model that
        answers questions, or of an encoder.
    output: directory of the pipeline.
    lang: code of the language, whose tokens the pipeline has.
    scheme: of the tags of a named entity recognizer; `None` to find out.
    corpus: documents to compare both on: .spacy, .txt or .jsonl; `None` for spaCy's example
        sentences.
    limit: only the first N documents; 0 for all.
    window: most pieces encoded together, special ones included; `None` for the most that the model
        was made for.
    pairs: whether a text classifier compares two texts; labels such as "entailment" say so, too.
    min_agreement: lowest share of tokens, or of documents, that get the same label from both.
    txt_documents: how .txt files are divided into documents, see `TxtDocuments`.
    force: whether to replace a pipeline in `output`.
    log: callback that receives a line for each step.

    Raises ConfigError, and writes nothing, if the model cannot become a pipeline, or if the two do
    not compute the same.
    """
    name, output = str(name), Path(output)
    if not 0 <= min_agreement <= 1:
        raise ConfigError(f"min_agreement = {min_agreement}: expected 0 to 1.")
    require_all(TRAINING, purpose="Converting a model of transformers")
    check_output(output, force=force, source=Path(name))
    documents: list[Documents] = []

    def read(nlp: Language) -> Documents:
        if not documents:
            documents.append(
                example_documents(nlp)
                if corpus is None
                else read_documents(
                    Path(corpus), nlp, limit=limit, txt_documents=txt_documents, log=log
                )
            )
        return documents[0]

    log(f"Loading {name}")
    loaded = load_model(
        name, lang, scheme, window=window, pairs=pairs, read_docs=lambda nlp: read(nlp).docs
    )
    with atomic_directory(output) as directory:
        loaded.nlp.to_disk(directory)
        candidate = load_pipeline(directory)
        docs = read(loaded.nlp).docs
        log(f"Comparing it with transformers on {len(docs):,} documents")
        check = check_model(
            candidate,
            loaded.description,
            docs,
            source="spaCy's example sentences" if corpus is None else str(corpus),
        )
        problem = check.find_problem(min_agreement)
        if problem is not None:
            raise ConfigError(f"{name}: {problem} Nothing was written.")
    pipes = {each: loaded.nlp.get_pipe_meta(each).factory for each in loaded.nlp.pipe_names}
    return ModelConversion(loaded.description.architecture, pipes, loaded.notes, check)


def convert_model_and_quantize(
    name: str | Path,
    output: str | Path,
    *,
    corpus: str | Path | None = None,
    limit: int = 0,
    txt_documents: TxtDocuments = "auto",
    batch_size: int = 64,
    force: bool = False,
    log: Callable[[str], Any] = lambda message: None,
    **settings: Any,
) -> tuple[ModelConversion, Quantization]:
    """Convert a model and quantize the result to int8, as `convert_model` and `quantize` do.

    Both check their result on the same documents. Only the quantized pipeline is written to
    `output`, at the end.

    settings: more arguments of `convert_model`. For the others see `quantize`.
    RETURNS: the results of both steps.
    Raises ConfigError, and writes nothing, if one of them fails.
    """
    name, output = str(name), Path(output)
    require_all(
        {**TRAINING, **QUANTIZING}, purpose="Converting and quantizing a model of transformers"
    )
    check_output(output, force=force, source=Path(name))
    checked: dict[str, Any] = {"corpus": corpus, "limit": limit, "txt_documents": txt_documents}
    return quantize_converted(
        partial(convert_model, name, log=log, **checked, **settings),
        output,
        batch_size=batch_size,
        force=force,
        log=log,
        **checked,
    )
