"""`explain`: which tokens made a pipeline predict what it predicts."""

from __future__ import annotations

import warnings
from typing import Any, Literal, get_args

import numpy as np
from spacy.language import Language
from spacy.tokens import Doc

from spacy_distil.component.shim import EncoderShim
from spacy_distil.errors import ConfigError
from spacy_distil.text.docs import same_tokens
from spacy_distil.trust.explanations.documents import find_encoder, find_visible, run_before
from spacy_distil.trust.explanations.explanation import Explanation, Explanations
from spacy_distil.trust.explanations.integrated_gradients import Line, integrate
from spacy_distil.trust.explanations.occlusion import check_length, occlude
from spacy_distil.trust.explanations.targets import (
    Request,
    Target,
    find_pipe,
    find_targets,
    read_request,
)

Method = Literal["auto", "integrated_gradients", "occlusion"]
METHODS: tuple[str, ...] = get_args(Method)


def explain(
    nlp: Language,
    text_or_doc: str | Doc,
    target: str | None = None,
    method: Method = "auto",
    *,
    max_steps: int = 512,
) -> Explanation | Explanations:
    """Compute how much each token of a text speaks for a prediction.

    nlp: a pipeline with a `textcat`, `textcat_multilabel`, `distil_ner`, `tagger` or
        `morphologizer`.
    text_or_doc: of a doc, the tokens alone count. The pipeline processes a copy.
    target: "cats:LABEL", or "cats" for the most probable label; "ents", the entities of
        `distil_ner`; "tag" and "pos", all tokens, or "tag:3" and "tag:WORD", some of them. None is
        the first of "cats", "ents", "tag" and "pos" that the pipeline predicts.
    method: "integrated_gradients" (Sundararajan et al. 2017, arXiv 1703.01365), which needs an
        encoder on the torch engine; "occlusion", which hides one token after another, in any
        pipeline; "auto" for the first of these that is possible.
    max_steps: most steps of integrated gradients, which double until the attributions add up.
    RETURNS: an explanation; several for "ents", for "tag" and for "tag:WORD". Their score is the
        log-odds of the prediction. Of an entity, it is the log-odds that its tokens have the tags
        of this entity.
    """
    if method not in METHODS:
        raise ConfigError(f"method = {method!r}: expected one of {', '.join(METHODS)}.")
    if max_steps < 1:
        raise ConfigError(f"max_steps = {max_steps}: expected at least 1.")
    if not isinstance(text_or_doc, (str, Doc)):
        raise ConfigError(
            f"text_or_doc is a {type(text_or_doc).__name__}: expected one text or one Doc. Explain "
            "several one after another."
        )
    request = read_request(nlp, target)
    name = find_pipe(nlp, request)
    made = nlp.make_doc(text_or_doc) if isinstance(text_or_doc, str) else text_or_doc
    if not len(made) and request.is_single:
        return _explain_nothing(nlp, name, request, nlp.make_doc(""), method)
    (doc,) = run_before(nlp, name, [same_tokens(made, nlp.vocab)])
    targets = find_targets(nlp, name, doc, request) if len(doc) else []
    encoder = find_encoder(nlp, name)
    if choose_method(nlp, name, method) == "occlusion":
        found = _occlude(nlp, doc, targets, encoder)
    else:
        assert encoder is not None
        found = _integrate(nlp.get_pipe(name), encoder, doc, targets, max_steps)
    nlp.get_pipe(name)(doc)
    return found[0] if request.is_single else found


def choose_method(nlp: Language, name: str, method: str) -> str:
    """Choose the method for a pipe. Raises ConfigError if it is not possible."""
    encoder = find_encoder(nlp, name)
    is_possible = encoder is not None and encoder.settings.engine == "torch"
    if method == "auto":
        return "integrated_gradients" if is_possible else "occlusion"
    if method == "integrated_gradients" and not is_possible:
        problem = (
            f"{name!r} has no encoder of a distil_transformer"
            if encoder is None
            else f"its encoder runs on engine = {encoder.settings.engine!r}, which has no gradients"
        )
        raise ConfigError(
            f"method = 'integrated_gradients': {problem}. Use 'occlusion', or 'auto'"
            + ("." if encoder is None else ", or explain the pipeline that was quantized.")
        )
    return method


def _occlude(
    nlp: Language, doc: Doc, targets: list[Target], encoder: EncoderShim | None
) -> Explanations:
    if not targets:
        return Explanations()
    check_length(doc)
    scored = occlude(nlp, doc, targets, find_visible(doc, encoder))
    return Explanations(
        Explanation(doc, target, score, attributions, "occlusion")
        for target, (score, attributions) in zip(targets, scored, strict=True)
    )


def _integrate(
    pipe: Any, encoder: EncoderShim, doc: Doc, targets: list[Target], max_steps: int
) -> Explanations:
    found = Explanations()
    if not targets:
        return found
    line = Line(pipe, encoder, doc)
    for target in targets:
        result = integrate(line, target, max_steps)
        if not result.is_complete:
            warnings.warn(
                f"The attributions for {target.what!r} do not add up: their sum misses the "
                f"difference of the scores, {result.score - result.baseline:.3g}, by "
                f"{result.error:.2g} after {result.steps} steps. Set max_steps above {max_steps}.",
                stacklevel=3,
            )
        found.append(
            Explanation(
                doc,
                target,
                result.score,
                result.attributions,
                "integrated_gradients",
                error=result.error,
                baseline=result.baseline,
                steps=result.steps,
            )
        )
    return found


def _explain_nothing(
    nlp: Language, name: str, request: Request, doc: Doc, method: str
) -> Explanation:
    """Explain a doc without tokens, for which no pipe predicts anything."""
    if request.kind != "cats":
        raise ConfigError(
            f"target = '{request.kind}:{request.detail}': the text has no tokens. Explain another."
        )
    label = request.detail
    target = Target(name, label, f"cats:{label}" if label else "cats", 0, 0, (), ())
    chosen = choose_method(nlp, name, method)
    return Explanation(doc, target, float("nan"), np.zeros(0), chosen)
