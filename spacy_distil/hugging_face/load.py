"""Make a pipeline in memory from a model of transformers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import spacy
from spacy.language import Language
from spacy.tokens import Doc
from thinc.api import NumpyOps
from wasabi import msg

from spacy_distil.component.nlp_config import set_requirements
from spacy_distil.component.shim import EncoderShim, get_encoder
from spacy_distil.encoding import to_ops
from spacy_distil.encoding.language import describe_case, describe_foreign
from spacy_distil.errors import ConfigError, WeightsError
from spacy_distil.hugging_face.description import (
    TEXT_HEADS,
    Description,
    describe,
    is_hugging_face,
    read_json,
)
from spacy_distil.hugging_face.tags import MISSING, EntityTags
from spacy_distil.ner.schemes import Scheme
from spacy_distil.pipelines import load_pipeline, one_line
from spacy_distil.text.documents import example_documents

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# The name of the encoder's component.
ENCODER = "transformer"
# The bias of a tag that the model does not have: no token gets it.
NEVER = -1e4


@dataclass(frozen=True)
class LoadedModel:
    """A model of transformers, and the pipeline that it has become.

    nlp: the pipeline.
    description: of the model.
    notes: decisions that the user may want to know.
    """

    nlp: Language
    description: Description
    notes: list[str]


def load_classifier(
    name: str | Path,
    lang: str | None,
    scheme: str | None = None,
    *,
    pairs: bool = False,
    tell: Callable[[str], Any] = msg.warn,
) -> Language:
    """Make a pipeline with the weights of a fine-tuned model of transformers.

        nlp = load_classifier("dslim/bert-base-NER", "en")

    name: directory or hub name of a token classifier, a text classifier or an encoder.
    lang: code of the language, whose tokens the pipeline has.
    scheme: of the tags of a named entity recognizer; `None` to find out.
    pairs: whether a text classifier compares two texts; labels such as "entailment" say so, too.
    tell: receives each decision that the user may want to know.
    Raises ConfigError for a model that becomes no pipeline, WeightsError for damaged weights.
    """
    loaded = load_model(str(name), lang, scheme, pairs=pairs)
    for note in loaded.notes:
        tell(f"{note}.")
    return loaded.nlp


def load_teacher(name: str, lang: str | None) -> Language:
    """Load a pipeline, or make one of a model of transformers.

    name: directory or package of the pipeline; directory or hub name of the model.
    lang: code of the model's language. A pipeline has a language of its own.
    """
    return load_classifier(name, lang) if is_hugging_face(name) else load_pipeline(name)


def load_model(
    name: str,
    lang: str | None,
    scheme: str | None = None,
    *,
    window: int | None = None,
    pairs: bool = False,
    read_docs: Callable[[Language], Sequence[Doc]] | None = None,
) -> LoadedModel:
    """Do the same as `load_classifier`, and tell more.

    window: most pieces encoded together; `None` for the most that the model was made for.
    pairs: as in `load_classifier`.
    read_docs: reads documents for a pipeline, on which an ambiguous scheme is decided; `None` for
        spaCy's example sentences.
    """
    description = describe(name, lang, window=window, pairs=pairs)
    if scheme is not None and description.tags is None:
        raise ConfigError(
            f"scheme = {scheme!r}: {name} has no tags of entities, its labels are "
            f"{', '.join(description.labels[:6]) or 'none'}. Leave --scheme out."
        )
    nlp = _blank(description.lang)
    model = {
        "@architectures": "spacy-distil.DistilTransformer.v1",
        "name": name,
        **description.encoding,
    }
    encoder: Any = nlp.add_pipe("distil_transformer", name=ENCODER, config={"model": model})
    encoder.model.initialize()
    notes = _describe_labels(description)
    tokenizer = get_encoder(encoder.model).loaded.tokenizer
    foreign = describe_foreign(tokenizer, name, description.lang)
    notes += filter(None, (foreign, describe_case(tokenizer, name)))
    if description.sentence is not None:
        _add_vectors(nlp, description)
        notes += _describe_prompts(name)
    elif description.pipe is not None:
        head = read_head(description, load_head_model(description))
        settings: dict[str, Any] = dict(description.settings)
        if description.tags is not None:
            docs = (read_docs or _example_docs)(nlp) if scheme is None else ()
            chosen, why = _choose_scheme(
                description.tags, scheme, get_encoder(encoder.model), head, docs
            )
            settings["scheme"] = chosen
            notes += why
            head = head.select(description.tags.columns(chosen))
        _add_pipe(nlp, description, head, settings)
    set_requirements(nlp.meta, "torch", nlp.config)
    return LoadedModel(nlp, description, notes)


@dataclass(frozen=True)
class Head:
    """The weights of a classifier behind the encoder.

    weight, bias: of the output layer, (n_labels, width) and (n_labels,).
    hidden: weight and bias of the hidden layer, (width, width) and (width,), or `None`.
    """

    weight: np.ndarray
    bias: np.ndarray
    hidden: tuple[np.ndarray, np.ndarray] | None = None

    def select(self, columns: np.ndarray) -> Head:
        """Return the head with outputs in another order. columns: of this head, or MISSING."""
        is_missing = columns == MISSING
        weight, bias = self.weight[columns], self.bias[columns]
        weight[is_missing], bias[is_missing] = 0, NEVER
        return Head(weight, bias, self.hidden)


def load_head_model(description: Description) -> PreTrainedModel:
    """Load a classifier of transformers, with its head, in float32 on the CPU.

    Raises WeightsError if weights are missing.
    """
    import transformers

    from spacy_distil.engines.pretrained import (
        check_values,
        explain_pickles,
        loading_error,
        quiet_transformers,
    )

    name = description.name
    kinds: dict[str, Any] = {
        "tokens": transformers.AutoModelForTokenClassification,
        "texts": transformers.AutoModelForSequenceClassification,
        "questions": transformers.AutoModelForQuestionAnswering,
        "encoder": transformers.AutoModel,
    }
    try:
        with quiet_transformers():
            model, info = kinds[description.kind].from_pretrained(
                name,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
    except Exception as error:  # each version and family of transformers raises its own
        raise loading_error(
            f"No classifier could be loaded from {name!r}",
            name,
            error,
            f"Expected model.safetensors of a {description.architecture}."
            f"{explain_pickles(name, error)}",
        ) from error
    # The pooler of an encoder is not used.
    missing = info["missing_keys"] if description.kind != "encoder" else ()
    wrong = [*missing, *(str(key) for key in info["mismatched_keys"])]
    if wrong:
        n_labels = len(description.labels)
        labels = f" Its id2label must have all labels (now {n_labels})." if n_labels else ""
        raise WeightsError(
            f"The weights of {name} do not fit its config.json: {', '.join(sorted(wrong)[:5])} "
            f"missing or of another shape.{labels} Correct it, or save or copy the model again."
        )
    check_values(name, model.state_dict())
    return model.float().eval()


def read_head(description: Description, model: PreTrainedModel) -> Head:
    """Take the weights of the head from a classifier.

    Raises ConfigError if the head has other layers.
    """
    weights = {key: value.detach().numpy() for key, value in model.state_dict().items()}
    family = model.config.model_type
    layers: tuple[str, ...] = ("classifier",)
    if description.kind == "texts":
        layers = TEXT_HEADS[family][1:]
    elif description.kind == "questions":
        layers = ("qa_outputs",)
    expected = {f"{layer}.{part}" for layer in layers for part in ("weight", "bias")}
    own = {key for key in weights if not key.startswith(f"{model.base_model_prefix}.")}
    width = model.config.hidden_size
    others = sorted((own - expected) | (expected - weights.keys()))
    shapes = [weights[f"{layer}.weight"].shape for layer in layers] if not others else []
    if others or shapes[:-1] not in ([], [(width, width)]) or shapes[-1][1] != width:
        raise ConfigError(
            f"{description.name} cannot become a pipeline: the head of a "
            f"{description.architecture} ({', '.join(others) or shapes}) has more than "
            f"{'linear layers' if len(layers) > 1 else 'one linear layer'} of the encoder's width."
        )
    *hidden, (weight, bias) = (
        (weights[f"{layer}.weight"], weights[f"{layer}.bias"]) for layer in layers
    )
    return Head(weight, bias, hidden[0] if hidden else None)


def _add_pipe(
    nlp: Language, description: Description, head: Head, settings: dict[str, Any]
) -> None:
    """Add the pipe with the weights of the head."""
    assert description.pipe is not None
    pipe: Any = nlp.add_pipe(
        description.pipe,
        name=description.pipe_name,
        config={"model": description.model, **settings},
    )
    labels = description.label_data
    if description.reads_pairs:
        _fill_pair_pipe(nlp, pipe, labels, head)
        return
    if description.pipe == "morphologizer":
        pipe.cfg["labels_morph"], pipe.cfg["labels_pos"] = labels["morph"], labels["pos"]
        for label in labels["morph"]:
            nlp.vocab.strings.add(label)
            nlp.vocab.morphology.add(label)
    else:
        for label in labels:
            pipe.add_label(label)
    ops, doc = pipe.model.ops, nlp.make_doc("a")
    n_outputs = len(head.bias)
    sample: Any = ops.alloc2f(1, n_outputs)
    pipe.model.initialize(X=[doc], Y=sample if description.kind == "texts" else [sample])
    output = pipe.model.get_ref("output_layer")
    output.set_param("W", to_ops(ops, head.weight.copy()))
    output.set_param("b", to_ops(ops, head.bias.copy()))
    if head.hidden is not None:
        layer = next(node for node in pipe.model.get_ref("pooled").walk() if node.has_param("W"))
        layer.set_param("W", to_ops(ops, head.hidden[0].copy()))
        layer.set_param("b", to_ops(ops, head.hidden[1].copy()))


def _fill_pair_pipe(nlp: Language, pipe: Any, labels: Sequence[str], head: Head) -> None:
    """Give a pipe that reads two texts its labels and the weights of the head."""
    for label in labels:
        pipe.add_label(label)
    if labels:
        pipe.model.set_dim("nO", len(labels))
    nlp._link_components()
    pipe.model.initialize()
    layers = {"output_layer": (head.weight, head.bias)}
    if head.hidden is not None:
        layers["hidden"] = head.hidden
    for name, (weight, bias) in layers.items():
        layer = pipe.model.get_ref(name)
        layer.set_param("W", to_ops(layer.ops, weight.copy()))
        layer.set_param("b", to_ops(layer.ops, bias.copy()))


def _add_vectors(nlp: Language, description: Description) -> None:
    """Add the pipe of a sentence encoder, with the weights of its linear layers."""
    pipe: Any = nlp.add_pipe(
        "distil_vectors", name=description.pipe_name, config={"model": description.model}
    )
    nlp._link_components()
    pipe.model.initialize(X=[nlp.make_doc("a")])
    layers = [node for node in pipe.model.get_ref("head").walk() if node.has_param("W")]
    for layer, (weight, bias) in zip(layers, read_dense(description), strict=True):
        layer.set_param("W", to_ops(layer.ops, weight))
        layer.set_param("b", to_ops(layer.ops, bias))


def read_dense(description: Description) -> list[tuple[np.ndarray, np.ndarray]]:
    """Read the linear layers of a sentence encoder.

    RETURNS: weight and bias of each, (width, width before it) and (width,).
    Raises WeightsError if they are missing, or of another shape.
    """
    from safetensors.numpy import load_file
    from transformers.utils import cached_file

    assert description.sentence is not None
    found = []
    for folder, width in description.sentence.dense:
        file = f"{folder}/model.safetensors"
        try:
            weights = load_file(cached_file(description.name, file))
            weight = weights["linear.weight"].astype(np.float32)
            bias = weights.get("linear.bias", np.zeros(width)).astype(np.float32)
        except Exception as error:  # each version of transformers raises its own
            raise WeightsError(
                f"{description.name}: {file} has no linear layer ({one_line(str(error))}). Weights "
                "in pytorch_model.bin are pickles, which can run code: load the model with "
                "sentence-transformers and save it again."
            ) from error
        if len(weight) != width or bias.shape != (width,):
            raise WeightsError(
                f"{description.name}: the layer in {file} is {weight.shape}, but its config.json "
                f"says out_features = {width}."
            )
        found.append((weight, bias))
    return found


def _describe_prompts(name: str) -> list[str]:
    """Say that a sentence encoder expects words before its texts."""
    prompts = (read_json(name, "config_sentence_transformers.json") or {}).get("prompts") or {}
    used = {key: text for key, text in prompts.items() if text}
    if not used:
        return []
    shown = ", ".join(f"{key}: {text!r}" for key, text in used.items())
    return [
        f"{name} was trained with words before its texts ({shown}). distil_vectors does not add "
        "them: put them into your texts"
    ]


def _blank(lang: str) -> Language:
    """Make an empty pipeline. Raises ConfigError if its tokenizer needs another package."""
    try:
        return spacy.blank(lang)
    except ImportError as error:  # spaCy names the package
        raise ConfigError(
            f"lang = {lang!r}: spaCy's tokenizer of this language is not installed. "
            f"{one_line(str(error))}"
        ) from error


# Labels


def _describe_labels(description: Description) -> list[str]:
    if description.labels and all(
        label == f"LABEL_{i}" for i, label in enumerate(description.labels)
    ):
        return [
            f"{description.name} has no names for its labels, which are now called "
            f"{', '.join(description.labels[:3])}, and so on: set id2label in its config.json"
        ]
    return []


def _example_docs(nlp: Language) -> list[Doc]:
    return example_documents(nlp).docs


def _choose_scheme(
    tags: EntityTags, scheme: str | None, encoder: EncoderShim, head: Head, docs: Sequence[Doc]
) -> tuple[Scheme, list[str]]:
    """Choose the scheme of tags, by the tags that the model predicts if they do not tell.

    scheme: of the user, or `None`.
    RETURNS (scheme, notes).
    """
    if scheme is not None:
        return tags.check_scheme(scheme), []
    if not tags.is_ambiguous:
        return tags.schemes[0], []
    n_b = n_i = 0
    for doc in docs:
        if not len(doc):
            continue
        (vectors,) = encoder.predict_docs([doc], NumpyOps())
        own = [i for i, token in enumerate(doc) if not token.is_space]
        predicted = (vectors @ head.weight.T + head.bias).argmax(axis=1)[own]
        starts = tags.count_starts(predicted)
        n_b, n_i = n_b + starts[0], n_i + starts[1]
    chosen: Scheme = "IOB1" if n_i > n_b else "IOB2"
    return chosen, [
        f"The tags fit IOB1 and IOB2. In {len(docs):,} documents the model begins {n_b:,} entities "
        f"with B and {n_i:,} with I, so they are read as {chosen}. If that is wrong, convert the "
        "model with --scheme"
    ]
