"""Decide by its config what a model of transformers becomes in a pipeline, without its weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from spacy.parts_of_speech import IDS as POS_IDS  # type: ignore[import-not-found]
from spacy.util import is_package

from spacy_distil.encoding.pooling import DocPooling
from spacy_distil.engines.files import CONFIG, longest_window
from spacy_distil.errors import TRAINING, ConfigError, WeightsError, require_all
from spacy_distil.hugging_face.tags import EntityTags, read_tags
from spacy_distil.pipelines import PAIR_FACTORIES
from spacy_distil.text.languages import check_language
from spacy_distil.vectors.layers import Activation

Kind = Literal["tokens", "texts", "questions", "encoder"]
Factory = Literal[
    "distil_ner",
    "tagger",
    "morphologizer",
    "textcat",
    "textcat_multilabel",
    "distil_vectors",
    "distil_pair",
    "distil_qa",
]

# The endings of the names of classes.
CLASSIFIERS: dict[str, Kind] = {
    "ForTokenClassification": "tokens",
    "ForSequenceClassification": "texts",
    "ForQuestionAnswering": "questions",
}
# Other endings, and why such a model becomes no pipeline.
REFUSED = {
    "ForMaskedLM": "it predicts pieces, not labels",
    "ForPreTraining": "it predicts pieces, not labels",
    "LMHeadModel": "it predicts pieces, not labels",
    "ForCausalLM": "it predicts pieces, not labels",
    "ForMultipleChoice": "it compares several texts, and a pipe of spaCy sees one at a time",
    "ForNextSentencePrediction": "it tells whether a text follows another",
    "ForConditionalGeneration": "it has a decoder",
}
# Labels that only models have that compare two texts.
_PAIR_LABELS = ("entailment", "contradiction", "entail", "contradict")
# The activation of the hidden layer in text classifiers, by family, and the names of this layer and
# of the output layer. DeBERTa's config has an activation.
TEXT_HEADS: dict[str, tuple[str | None, str, str]] = {
    "albert": ("tanh", "albert.pooler", "classifier"),
    "bert": ("tanh", "bert.pooler.dense", "classifier"),
    "camembert": ("tanh", "classifier.dense", "classifier.out_proj"),
    "deberta": (None, "pooler.dense", "classifier"),
    "deberta-v2": (None, "pooler.dense", "classifier"),
    "distilbert": ("relu", "pre_classifier", "classifier"),
    "electra": ("gelu", "classifier.dense", "classifier.out_proj"),
    "mpnet": ("tanh", "classifier.dense", "classifier.out_proj"),
    "roberta": ("tanh", "classifier.dense", "classifier.out_proj"),
    "xlm-roberta": ("tanh", "classifier.dense", "classifier.out_proj"),
}
# What `distil_vectors` computes of the modules of a sentence encoder. Since version 5.2,
# sentence-transformers names the pooling; before, there was a setting for each.
_SENTENCE_POOLINGS: dict[str, DocPooling] = {"mean": "mean", "cls": "first", "max": "max"}
_POOLING = "pooling_mode"
_ACTIVATIONS: dict[str, Activation] = {"Tanh": "tanh", "Identity": "identity"}
# As in the architecture.
_OVERLAP = 32


@dataclass(frozen=True)
class SentenceHead:
    """The modules of a sentence encoder behind its encoder.

    pooling: of all pieces of a text.
    dense: folders of the linear layers, with their widths.
    activation: of these layers.
    normalize: whether vectors are scaled to the length 1.
    """

    pooling: DocPooling
    dense: tuple[tuple[str, int], ...]
    activation: Activation
    normalize: bool


@dataclass(frozen=True)
class Description:
    """A model of transformers as a pipeline.

    name: directory or hub name.
    lang: spaCy's code of the language.
    kind: of the model: it classifies tokens or texts, answers questions, or is an encoder alone.
    architecture: name of its class.
    labels: of its classes, by number.
    tags: the labels as tags of entities; `None` if they are none.
    pipe: factory of the pipe behind the encoder, and its name; `None` for an encoder.
    encoding: window, overlap and pooling of the `distil_transformer`.
    hidden: the hidden layer of a text classifier, see `TextCatHead`.
    sentence: the head of a sentence encoder.
    settings: of the pipe.
    """

    name: str
    lang: str
    kind: Kind
    architecture: str
    labels: tuple[str, ...]
    tags: EntityTags | None
    pipe: Factory | None
    encoding: Mapping[str, Any]
    hidden: str | None
    sentence: SentenceHead | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def reads_pairs(self) -> bool:
        """Whether the pipe reads two texts together."""
        return self.pipe in PAIR_FACTORIES

    @property
    def pipe_name(self) -> str | None:
        """The name of the pipe: its factory, or shorter for ours."""
        return None if self.pipe is None else self.pipe.removeprefix("distil_")

    @property
    def model(self) -> dict[str, Any]:
        """The settings of the pipe's model."""
        tok2vec: dict[str, Any] = {"@architectures": "spacy-distil.Listener.v1"}
        if self.sentence is not None:
            return {
                "@architectures": "spacy-distil.VectorsHead.v1",
                "pooling": "doc",
                "dense": [width for _, width in self.sentence.dense],
                "activation": self.sentence.activation,
                "normalize": self.sentence.normalize,
                "tok2vec": {**tok2vec, "docs": True},
            }
        if self.pipe == "distil_pair":
            return {
                "@architectures": "spacy-distil.PairHead.v1",
                "hidden": self.hidden,
                "tok2vec": {**tok2vec, "pairs": True},
            }
        if self.pipe == "distil_qa":
            return {
                "@architectures": "spacy-distil.QAHead.v1",
                "tok2vec": {**tok2vec, "pairs": True},
            }
        if self.kind == "texts":
            return {
                "@architectures": "spacy-distil.TextCatHead.v1",
                "exclusive_classes": self.pipe == "textcat",
                "hidden": self.hidden,
                "tok2vec": tok2vec,
            }
        return {"@architectures": "spacy.Tagger.v2", "tok2vec": tok2vec}

    @property
    def label_data(self) -> Any:
        """The labels of the pipe, as `spacy init labels` would save them."""
        if self.pipe == "morphologizer":
            names = [f"POS={label}" for label in self.labels]
            numbers = [POS_IDS[label] for label in self.labels]
            return {
                "morph": dict.fromkeys(names, ""),
                "pos": dict(zip(names, numbers, strict=True)),
            }
        return list(self.tags.labels if self.tags else self.labels)


def is_hugging_face(name: str | Path) -> bool:
    """Tell whether a name is the directory of a model of transformers, or may be one on the hub.

    A hub name has one slash, and is no path whose first part exists here.
    """
    path = Path(name)
    if path.is_dir():
        return (path / CONFIG).is_file() and not (path / "meta.json").is_file()
    owner, slash, model = str(name).partition("/")
    return bool(
        slash
        and owner.strip(".~")
        and model
        and "/" not in model
        and not path.exists()
        and not Path(owner).exists()
        and not is_package(str(name))
    )


def describe(
    name: str, lang: str | None, *, window: int | None = None, pairs: bool = False
) -> Description:
    """Read the config of a model, and decide what it becomes.

    name: directory or hub name.
    lang: code of the language.
    window: most pieces encoded together; `None` for the most that the model takes.
    pairs: whether a text classifier compares two texts. Labels such as "entailment" say so, too.
    Raises ConfigError for a model that becomes no pipeline.
    """
    if lang is None:
        model = f"{name} is a model of transformers"
        if not Path(name).is_dir():
            model = f"There is no directory {name} here. If it is a model on the Hugging Face hub"
        raise ConfigError(
            f"{model}, which does not say how its language is split into tokens. Name the language "
            "with --lang, as in --lang de, or --lang xx for many."
        )
    lang = check_language(lang)
    require_all(TRAINING, purpose="A model of transformers")
    config = read_model_config(name)
    modules = read_json(name, "modules.json")
    architecture = _find_architecture(name, config)
    kind = _find_kind(name, architecture, is_sentence_encoder=modules is not None)
    encoding: dict[str, Any] = {"window": window, "overlap": _OVERLAP, "pooling": "first"}
    labels: tuple[str, ...] = ()
    tags, pipe, hidden, sentence = None, None, None, None
    settings: dict[str, Any] = {}
    if pairs and kind != "texts":
        raise ConfigError(
            f"--pairs: {name} is a {architecture}, and only a text classifier "
            "(…ForSequenceClassification) can compare two texts. Leave it out."
        )
    if kind == "encoder":
        encoding["pooling"] = "mean"
        if modules is not None:
            pipe, sentence = "distil_vectors", _read_sentence_head(name, modules)
            encoding["doc_pooling"] = sentence.pooling
    elif kind != "questions":
        labels = _read_labels(name, config)
    if kind == "tokens":
        tags = read_tags(labels)
        pipe = "distil_ner" if tags else "tagger"
        if not tags and all(label in POS_IDS for label in labels):
            pipe = "morphologizer"
    elif kind == "questions":
        pipe, encoding["pooling"] = "distil_qa", "mean"
    elif kind == "texts" and (pairs or any(each.lower() in _PAIR_LABELS for each in labels)):
        pipe, encoding["pooling"] = "distil_pair", "mean"
        settings["output"] = _find_output(name, config, labels)
        hidden = _find_hidden(name, config)
    elif kind == "texts":
        encoding["pooling"] = "cls"
        pipe = _find_textcat(name, config, labels)
        hidden = _find_hidden(name, config)
    return Description(
        name=name,
        lang=lang,
        kind=kind,
        architecture=architecture,
        labels=labels,
        tags=tags,
        pipe=pipe,  # type: ignore[arg-type]
        encoding=_fit_window(name, config, encoding),
        hidden=hidden,
        sentence=sentence,
        settings=settings,
    )


def read_model_config(name: str) -> Any:
    """Read the config of a model. RETURNS: an object of transformers."""
    import transformers

    from spacy_distil.engines.pretrained import loading_error, quiet_transformers

    try:
        with quiet_transformers():
            settings, _ = transformers.PretrainedConfig.get_config_dict(name)
            if "auto_map" in settings and settings.get("model_type") not in (
                transformers.CONFIG_MAPPING
            ):
                raise ConfigError(
                    f"{name} comes with code of its own, which is never run. Take a model whose "
                    "class is part of transformers."
                )
            return transformers.AutoConfig.from_pretrained(name, trust_remote_code=False)
    except ConfigError:
        raise
    except Exception as error:  # each version and family of transformers raises its own
        raise loading_error(
            f"No model could be loaded from {name!r}",
            name,
            error,
            "Expected a saved pipeline, a directory with config.json, model.safetensors and a "
            "tokenizer, or the name of such a model on the Hugging Face hub.",
        ) from error


def read_json(name: str, file: str) -> Any:
    """Read a JSON file of a model, or return None if it has none."""
    from transformers.utils import cached_file

    try:
        path = cached_file(name, file)
    except OSError:
        return None
    try:
        return json.loads(Path(path).read_text(encoding="utf8"))
    except ValueError as error:
        raise WeightsError(
            f"{path} is not valid JSON: {error}. Save or copy the model again."
        ) from error


def _find_architecture(name: str, config: Any) -> str:
    if config.is_encoder_decoder:
        raise ConfigError(f"{name} cannot become a pipeline: it has a decoder.")
    if not config.architectures:
        raise ConfigError(
            f'{name} cannot become a pipeline: its config.json names no "architectures", so '
            "nothing tells which head it has."
        )
    return str(config.architectures[0])


def _find_kind(name: str, architecture: str, *, is_sentence_encoder: bool) -> Kind:
    for ending, kind in CLASSIFIERS.items():
        if architecture.endswith(ending):
            return kind
    reason = next((why for end, why in REFUSED.items() if architecture.endswith(end)), None)
    if is_sentence_encoder or (reason is None and architecture.endswith("Model")):
        return "encoder"
    advice = ""
    if reason is not None and "pieces" in reason:
        advice = f" Train pipes on its encoder: 'init-config train --encoder {name}'."
    raise ConfigError(
        f"{name} is a {architecture}, which cannot become a pipeline: "
        f"{reason or 'no pipe is known that does the same'}. Expected a token classifier "
        f"(…ForTokenClassification), a text classifier (…ForSequenceClassification) or an encoder "
        f"(…Model).{advice}"
    )


def _read_labels(name: str, config: Any) -> tuple[str, ...]:
    """Return the labels by number. Raises ConfigError if they are not distinct."""
    named = config.id2label
    if sorted(named) != list(range(len(named))):
        raise ConfigError(
            f"{name}: id2label in config.json numbers its labels {sorted(named)[:8]}, expected 0 "
            f"to {len(named) - 1}."
        )
    labels = tuple(str(named[i]) for i in range(len(named)))
    twice = [label for label in dict.fromkeys(labels) if labels.count(label) > 1]
    if twice or "" in labels:
        raise ConfigError(
            f"{name} has several labels of the name {twice[0]!r}, or an empty one: a pipe could "
            "not tell them apart. Rename them in id2label of config.json."
            if twice
            else f"{name} has a label without a name. Give it one in id2label of config.json."
        )
    return labels


def _find_textcat(name: str, config: Any, labels: tuple[str, ...]) -> Factory:
    if config.problem_type == "multi_label_classification":
        return "textcat_multilabel"
    if config.problem_type == "regression" or len(labels) == 1:
        raise ConfigError(
            f"{name} cannot become a pipeline: its outputs are numbers of any size (regression), "
            "and spaCy's text categorizers give probabilities. If it compares two texts, add "
            "--pairs. If it was trained to give the probability of each label, set "
            '"problem_type" to "multi_label_classification" in config.json.'
        )
    return "textcat"


def _find_output(name: str, config: Any, labels: tuple[str, ...]) -> str:
    """Return what a classifier of two texts computes, as the setting of `distil_pair`."""
    if config.problem_type == "multi_label_classification":
        raise ConfigError(
            f"{name} cannot become a pipeline: it gives two texts several labels at once, and the "
            "classes of distil_pair exclude each other."
        )
    if len(labels) > 1:
        return "classes"
    # sentence-transformers writes the activation of a reranker into the config.
    own = getattr(config, "sentence_transformers", None) or {}
    activation = own.get("activation_fn") or getattr(
        config, "sbert_ce_default_activation_function", None
    )
    return "probability" if str(activation).endswith("Sigmoid") else "number"


def _find_hidden(name: str, config: Any) -> str:
    """Return the activation of a text classifier's hidden layer."""
    from spacy_distil.component.textcat import ACTIVATIONS

    family = config.model_type
    if family not in TEXT_HEADS:
        raise ConfigError(
            f"{name} cannot become a pipeline: the head of a text classifier of the family "
            f"{family!r} is not known. Expected one of {', '.join(TEXT_HEADS)}."
        )
    hidden = TEXT_HEADS[family][0] or config.pooler_hidden_act
    if hidden not in ACTIVATIONS:
        raise ConfigError(
            f"{name} cannot become a pipeline: the hidden layer of its head has the activation "
            f"{hidden!r}. Expected one of {', '.join(ACTIVATIONS)}."
        )
    return str(hidden)


def _read_sentence_head(name: str, modules: Any) -> SentenceHead:
    """Read the modules of a sentence encoder. Raises ConfigError for one that is not known."""
    kinds = [module["type"].rpartition(".")[2] for module in modules]
    paths = [module["path"] for module in modules]
    dense = kinds[2:]
    has_norm = dense[-1:] == ["Normalize"]
    dense = dense[:-1] if has_norm else dense
    if kinds[:2] != ["Transformer", "Pooling"] or paths[0] or {*dense} - {"Dense"}:
        raise ConfigError(
            f"{name} cannot become a pipeline: this sentence encoder has the modules "
            f"{', '.join(kinds)}. Expected an encoder in the folder itself, a pooling, and perhaps "
            "Dense and Normalize."
        )
    settings = read_json(name, f"{paths[1]}/{CONFIG}") or {}
    modes = settings.get(_POOLING) or [
        mode.removeprefix(f"{_POOLING}_").removesuffix("_tokens").removesuffix("_token")
        for mode, is_on in settings.items()
        if mode.startswith(_POOLING) and is_on
    ]
    modes = [modes] if isinstance(modes, str) else modes
    if len(modes) != 1 or modes[0] not in _SENTENCE_POOLINGS:
        raise ConfigError(
            f"{name} cannot become a pipeline: this sentence encoder pools with "
            f"{', '.join(modes) or 'nothing that its folder names'}. Expected one of "
            f"{', '.join(_SENTENCE_POOLINGS)}."
        )
    layers = [read_json(name, f"{path}/{CONFIG}") or {} for path in paths[2 : 2 + len(dense)]]
    activations = {
        str(layer.get("activation_function", "")).rpartition(".")[2] for layer in layers
    } or {"Tanh"}
    if len(activations) > 1 or not activations <= _ACTIVATIONS.keys():
        raise ConfigError(
            f"{name} cannot become a pipeline: its Dense modules have the activations "
            f"{', '.join(sorted(activations))}. Expected one of {', '.join(_ACTIVATIONS)} in all."
        )
    return SentenceHead(
        pooling=_SENTENCE_POOLINGS[modes[0]],
        dense=tuple(
            (path, int(layer["out_features"]))
            for path, layer in zip(paths[2:], layers, strict=False)
        ),
        activation=_ACTIVATIONS[activations.pop()],
        normalize=has_norm,
    )


def _fit_window(name: str, config: Any, encoding: dict[str, Any]) -> dict[str, Any]:
    """Fit window and overlap to the texts that the model was trained on.

    encoding: window, overlap and pooling.
    """
    settings = config.to_dict()
    if not isinstance(settings.get("max_position_embeddings"), int):
        return encoding  # the encoder is refused when it is loaded
    longest = longest_window(settings)
    window = encoding["window"]
    if window is None:
        limits = (
            (read_json(name, "sentence_bert_config.json") or {}).get("max_seq_length"),
            (read_json(name, "tokenizer_config.json") or {}).get("model_max_length"),
        )
        window = next((n for n in limits if isinstance(n, int) and 8 <= n < longest), None)
    overlap = min(encoding["overlap"], (window or longest) // 4)
    return {**encoding, "window": window, "overlap": overlap}
