"""The agreement of a converted model with transformers' own forward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from spacy.language import Language
from spacy.tokens import Doc
from thinc.api import to_numpy

from spacy_distil.component.shim import EncoderShim, get_encoder
from spacy_distil.encoding import EncodedDocs, PieceTokenizer, encode_docs
from spacy_distil.errors import CorpusError
from spacy_distil.hugging_face.description import Description
from spacy_distil.hugging_face.load import ENCODER, load_head_model, read_dense
from spacy_distil.hugging_face.tags import MISSING
from spacy_distil.pairs.layers import encoder_of
from spacy_distil.pairs.spans import IMPOSSIBLE
from spacy_distil.tables import Table
from spacy_distil.text.docs import same_tokens

# The largest difference of numbers, as a share of the largest of them, or of 1.
TOLERANCE = 1e-4

# Computes the output of transformers for the pieces of a window, special ones included:
# (n_pieces, n_labels) for tokens, (n_labels,) for texts, (n_pieces, width) for an encoder.
Forward = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class ModelCheck:
    """Agreement of a pipeline with the model that it was made from.

    source: where the documents come from.
    n_docs: number of documents that were compared.
    n_other_pieces: number of those that the tokenizer of transformers, called on the whole text,
        splits into other pieces.
    n_long: number of documents that were left out, because they are longer than a window; only in
        text classifiers, which transformers truncates.
    outputs: what was compared: "logits" or "vectors".
    unit, n: what they belong to, "tokens" or "documents", and the number of these.
    largest, max_difference: the largest output, and the largest difference, both absolute.
    agreement: share of the units that get the same label; `None` for an encoder.
    n_corrected: number of tokens whose best tag makes no valid entity, so that `distil_ner` has
        given them another.
    """

    source: str
    n_docs: int
    n_other_pieces: int
    n_long: int
    outputs: str
    unit: str
    n: int
    largest: float
    max_difference: float
    agreement: float | None
    n_corrected: int

    def find_problem(self, min_agreement: float) -> str | None:
        """Say in a sentence why the pipeline must not be used, or return None."""
        if not self.max_difference <= TOLERANCE * max(1.0, self.largest):
            return (
                f"the {self.outputs} differ from transformers' by up to {self.max_difference:.3g} "
                f"(largest {self.outputs[:-1]}: {self.largest:.3g}), so this model is not computed "
                "as its config.json says."
            )
        if self.agreement is not None and self.agreement < min_agreement:
            return (
                f"{self.agreement:.2%} of {self.n:,} {self.unit} get the label that transformers "
                f"gives them; expected at least {min_agreement:.2%} (--min-agreement)."
            )
        return None


def to_text(check: ModelCheck) -> str:
    """Write the table for the terminal."""
    rows = [["documents", f"{check.n_docs:,}"]]
    if check.unit != "documents":
        rows.append([check.unit, f"{check.n:,}"])
    rows.append([f"largest difference of {check.outputs}", f"{check.max_difference:.2g}"])
    if check.agreement is not None:
        rows.append(["the same label", f"{check.agreement:.2%}"])
    if check.n_corrected:
        rows.append(["tags changed for valid entities", f"{check.n_corrected:,}"])
    if check.n_other_pieces:
        rows.append(["documents in other pieces", f"{check.n_other_pieces:,}"])
    if check.n_long:
        rows.append(["documents longer than a window", f"{check.n_long:,}"])
    title = f"Pipeline and transformers on {check.source}"
    return Table(title, ["measure", "value"], rows).to_text()


def check_model(
    nlp: Language, description: Description, docs: Sequence[Doc], *, source: str
) -> ModelCheck:
    """Compare a pipeline with transformers' own forward, window by window.

    nlp: the pipeline.
    description: of the model.
    docs: documents, of any vocab.
    source: where they come from.
    Raises CorpusError if none can be compared.
    """
    if description.reads_pairs:
        return _check_pairs(nlp, description, docs, source=source)
    encoder = get_encoder(nlp.get_pipe(ENCODER).model)  # type: ignore[attr-defined]
    forward, split = _load_reference(description)
    compare = {"tokens": _compare_tokens, "texts": _compare_text, "encoder": _compare_vectors}
    if description.sentence is not None:
        compare["encoder"] = partial(_compare_docs, dense=read_dense(description))
    pairs: list[tuple[np.ndarray, np.ndarray]] = []
    n_other = n_long = n_corrected = 0
    for each in docs:
        doc = same_tokens(each, nlp.vocab)
        encoded = encode_docs(
            [doc],
            encoder.loaded.tokenizer,
            window=encoder.loaded.window,
            overlap=encoder.settings.overlap,
            pooling=encoder.settings.pooling,
        )
        if len(encoded.windows) > 1 and encoder.settings.pooling == "cls":
            n_long += 1
        elif encoded.windows:
            windows = [_with_special(ids, encoder.loaded.tokenizer) for ids in encoded.windows]
            n_other += len(windows) == 1 and windows[0].tolist() != split(doc.text)
            case = _Case(nlp(doc), encoder, encoded, [forward(window) for window in windows])
            pairs.append(compare[description.kind](nlp, description, case))
            if description.pipe == "distil_ner":
                n_corrected += _count_corrected(nlp, description, case, pairs[-1][0])
    if not pairs:
        raise CorpusError(
            f"None of the documents of {source} can be compared: they have no text, or are longer "
            "than a window. Name others with --corpus."
        )
    own, reference = map(np.concatenate, zip(*pairs, strict=True))
    is_encoder = description.kind == "encoder"
    return ModelCheck(
        source=source,
        n_docs=len(pairs),
        n_other_pieces=n_other,
        n_long=n_long,
        outputs="vectors" if is_encoder else "logits",
        unit="documents" if description.kind == "texts" or description.sentence else "tokens",
        n=len(own),
        largest=float(np.abs(reference).max(initial=0)),
        max_difference=float(np.abs(own - reference).max(initial=0)),
        agreement=None if is_encoder else _same_labels(own, reference, description),
        n_corrected=n_corrected,
    )


def _check_pairs(
    nlp: Language, description: Description, docs: Sequence[Doc], *, source: str
) -> ModelCheck:
    """Compare a pipe that reads two texts, on each document with the next one.

    Pairs that do not fit into one window are left out, because transformers truncates them.
    """
    import torch

    from spacy_distil.engines.pretrained import load_fast_tokenizer

    pipe: Any = nlp.get_pipe(str(description.pipe_name))
    encoder = encoder_of(pipe.model.get_ref("pair_rows"))
    assert encoder is not None
    model = load_head_model(description)
    tokenizer = load_fast_tokenizer(description.name, setting="name")
    own, reference, best = [], [], []
    n_other = n_long = 0
    texts = [same_tokens(doc, nlp.vocab) for doc in docs if len(doc)]
    for first, second in zip(texts, [*texts[1:], *texts[:1]], strict=True):
        encoded = encoder.encode_pairs([(first, second)])
        if len(encoded.windows) > 1:
            n_long += 1
            continue
        ids = encoded.windows[0]
        n_other += ids.tolist() != tokenizer(first.text, second.text)["input_ids"]
        inputs = {"input_ids": torch.from_numpy(ids)[None]}
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        if encoder.engine.n_token_types > 1:
            types = np.arange(len(ids)) >= encoded.seconds[0]
            inputs["token_type_ids"] = torch.from_numpy(types.astype(np.int64))[None]
        with torch.inference_mode():
            output = model(**inputs)
        logits = to_numpy(pipe.model.predict([(first, second)])[0])
        if description.pipe == "distil_pair":
            expected = output.logits[0].numpy()
        else:
            expected = np.full_like(logits, IMPOSSIBLE)
            for column, (rows, values) in enumerate(
                ((encoded.begins, output.start_logits), (encoded.ends, output.end_logits))
            ):
                pieces = values[0].numpy()
                expected[0, column] = pieces[0]
                expected[1:][rows.lengths > 0, column] = pieces[rows.columns]
        best.append(bool((logits.argmax(axis=0) == expected.argmax(axis=0)).all()))
        own.append(logits.ravel())
        reference.append(expected.ravel())
    if not own:
        raise CorpusError(
            f"None of the documents of {source} can be compared: they have no text, or two of them "
            "are longer than a window. Name others with --corpus."
        )
    logits, expected = np.concatenate(own), np.concatenate(reference)
    possible = expected > IMPOSSIBLE
    return ModelCheck(
        source=source,
        n_docs=len(own),
        n_other_pieces=n_other,
        n_long=n_long,
        outputs="logits",
        unit="pairs",
        n=len(own),
        largest=float(np.abs(expected[possible]).max(initial=0)),
        max_difference=float(np.abs(logits - expected).max(initial=0)),
        agreement=float(np.mean(best)),
        n_corrected=0,
    )


@dataclass(frozen=True)
class _Case:
    """A document, with the output of transformers for each of its windows.

    doc: annotated by the pipeline.
    encoded: the doc, as the component encodes it.
    outputs: of the pieces of each window, special ones included, see Forward.
    """

    doc: Doc
    encoder: EncoderShim
    encoded: EncodedDocs
    outputs: Sequence[np.ndarray]

    @property
    def rows(self) -> np.ndarray:
        """The outputs of the pieces of all windows, without special ones."""
        begin = len(self.encoder.loaded.tokenizer.prefix)
        return np.concatenate(
            [
                output[begin : begin + len(window)]
                for output, window in zip(self.outputs, self.encoded.windows, strict=True)
            ]
        )

    @property
    def tokens(self) -> list[tuple[int, np.ndarray]]:
        """The tokens that have pieces, by number, and the rows of each."""
        rows, lengths = self.encoded.token_rows()
        groups = np.split(rows, np.cumsum(lengths)[:-1])
        return [(i, group) for i, group in enumerate(groups) if len(group)]


def _load_reference(description: Description) -> tuple[Forward, Callable[[str], list[int]]]:
    """Load model and tokenizer by the classes of transformers.

    RETURNS (forward, split): the latter returns the ids of a text, special ones included.
    """
    import torch

    from spacy_distil.engines.pretrained import load_fast_tokenizer

    model = load_head_model(description)
    tokenizer = load_fast_tokenizer(description.name, setting="name")

    def forward(ids: np.ndarray) -> np.ndarray:
        pieces = torch.from_numpy(ids)[None]
        with torch.inference_mode():
            output = model(input_ids=pieces, attention_mask=torch.ones_like(pieces))
        states = output.last_hidden_state if description.kind == "encoder" else output.logits
        return states[0].numpy()

    return forward, lambda text: tokenizer(text, truncation=False)["input_ids"]


def _with_special(window: np.ndarray, tokenizer: PieceTokenizer) -> np.ndarray:
    return np.concatenate([tokenizer.prefix, window, tokenizer.suffix]).astype(np.int64)


# Each returns the outputs of the pipeline, and of transformers.
_Pair = tuple[np.ndarray, np.ndarray]


def _compare_tokens(nlp: Language, description: Description, case: _Case) -> _Pair:
    """Compare the logits at the first piece of each token. The logits of transformers
    are put into the order of the pipe's outputs.
    """
    pipe: Any = nlp.get_pipe(str(description.pipe_name))
    logits = pipe.model.ops.to_numpy(pipe.model.predict([case.doc])[0])
    columns = _columns(pipe, description)
    known = columns != MISSING
    rows, tokens = case.rows, case.tokens
    reference = rows[[int(own[0]) for _, own in tokens]]
    return logits[[i for i, _ in tokens]][:, known], reference[:, columns[known]]


def _compare_text(nlp: Language, description: Description, case: _Case) -> _Pair:
    """Compare the logits of a document."""
    model: Any = nlp.get_pipe(str(description.pipe_name)).model  # type: ignore[attr-defined]
    output = model.get_ref("output_layer")
    pooled = model.get_ref("pooled").predict([case.doc])
    logits = pooled @ output.get_param("W").T + output.get_param("b")
    return model.ops.to_numpy(logits), case.outputs[0][None]


def _compare_vectors(nlp: Language, description: Description, case: _Case) -> _Pair:
    """Compare the vectors of the tokens that have pieces."""
    vectors, rows = to_numpy(case.doc.tensor), case.rows
    tokens = case.tokens
    pooling = case.encoder.settings.pooling
    if pooling == "cls":
        reference = [case.outputs[0][0] for _ in tokens]
    elif pooling == "max":
        reference = [rows[own].max(axis=0) for _, own in tokens]
    else:  # a piece in two windows counts as one
        pieces = case.encoded.row_pieces
        reference = [
            np.mean([rows[own][pieces[own] == piece].mean(0) for piece in set(pieces[own])], axis=0)
            for _, own in tokens
        ]
    width = vectors.shape[1]
    return vectors[[i for i, _ in tokens]], np.array(reference, dtype="f").reshape(-1, width)


def _compare_docs(
    nlp: Language,
    description: Description,
    case: _Case,
    *,
    dense: Sequence[tuple[np.ndarray, np.ndarray]],
) -> _Pair:
    """Compare the vector of a document of a sentence encoder.

    dense: weight and bias of its linear layers.
    """
    assert description.sentence is not None
    if description.sentence.pooling == "first":
        vector = case.outputs[0][0]
    elif description.sentence.pooling == "max":
        vector = np.concatenate(case.outputs).max(axis=0)
    else:
        # In several windows, a piece counts once, and special pieces count as in one window.
        rows, pieces = case.rows, case.encoded.row_pieces
        begin = len(case.encoder.loaded.tokenizer.prefix)
        around = [
            np.delete(output, np.s_[begin : begin + len(window)], axis=0)
            for output, window in zip(case.outputs, case.encoded.windows, strict=True)
        ]
        distinct = [rows[pieces == piece].mean(axis=0) for piece in np.unique(pieces)]
        vector = np.mean([*distinct, *np.mean(around, axis=0)], axis=0)
    for weight, bias in dense:
        vector = weight @ vector + bias
        if description.sentence.activation == "tanh":
            vector = np.tanh(vector)
    if description.sentence.normalize:
        vector = vector / np.linalg.norm(vector)
    return to_numpy(case.doc.vector)[None], vector[None]


def _columns(pipe: Any, description: Description) -> np.ndarray:
    """Return the label in the model of each output of a pipe, or MISSING."""
    if description.tags is None:
        return np.arange(len(description.labels))
    return description.tags.columns(pipe.scheme)


def _same_labels(own: np.ndarray, reference: np.ndarray, description: Description) -> float:
    """Return the share of rows with the same label, or, of several, the same ones."""
    if not len(own):
        return 1.0
    if description.pipe == "textcat_multilabel":
        return float(((own > 0) == (reference > 0)).all(axis=1).mean())
    return float((own.argmax(axis=1) == reference.argmax(axis=1)).mean())


def _count_corrected(
    nlp: Language, description: Description, case: _Case, logits: np.ndarray
) -> int:
    """Count the tokens whose entity has another label than their best tag.

    logits: as `_compare_tokens` returns them.
    """
    pipe: Any = nlp.get_pipe(str(description.pipe_name))
    columns = _columns(pipe, description)
    names = [
        name for name, column in zip(pipe.tag_names, columns, strict=True) if column != MISSING
    ]
    best = [names[i].partition("-")[2] for i in logits.argmax(axis=1)]
    tokens = [case.doc[i] for i, _ in case.tokens]
    return sum(
        not token.is_space and token.ent_type_ != label
        for token, label in zip(tokens, best, strict=True)
    )
