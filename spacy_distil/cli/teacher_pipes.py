"""The pipes of a trained pipeline, as `init-config pipeline --teacher` reads them."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from spacy.util import get_lang_class, registry

from spacy_distil.errors import ConfigError
from spacy_distil.pipelines import read_config
from spacy_distil.text.languages import check_language, language_name

if TYPE_CHECKING:
    from spacy_distil.hugging_face import Description

# Factories of encoders. The student has an encoder of its own instead.
ENCODERS = ("distil_transformer", "transformer", "curated_transformer", "tok2vec")
# Settings of an encoder of ours that decide what its token vectors are made of.
ENCODING = ("window", "overlap", "pooling", "doc_pooling", "pieces_from")
# Factories of teachers' pipes, and what the student has instead.
SIMPLER = {"beam_ner": "ner", "beam_parser": "parser"}
PARSERS = "spacy.TransitionBasedParser."
TEXT_HEAD = "spacy-distil.TextCatHead.v1"
VECTORS_HEAD = "spacy-distil.VectorsHead.v1"
# Settings that teacher and student of pipes for pairs share.
PAIR_SETTINGS = {
    "distil_pair": ("output", "other"),
    "distil_qa": ("max_answer_tokens", "no_answer", "threshold", "questions", "answers"),
}
QA = "distil_qa"
PAIR_HEAD = "spacy-distil.PairHead.v1"


@dataclass(frozen=True)
class TeacherPipes:
    """The pipes of a teacher, for the config of its student.

    name: directory or package of the teacher.
    lang: code of the language.
    names: of pipes and rules, in the order of the pipeline.
    pipes: those that a student can learn from, by name, with the student's factory.
    rules: those without a model, by name, with their factory. A student gets copies.
    models: the settings of the models of `pipes`, by name.
    settings: of pipes that read texts in pairs, by name.
    schemes: of the tags of each `distil_ner`, by name, if it is known without its weights.
    left_out: the others, by name, with the reason.
    encoding: the settings ENCODING of a `distil_transformer`; otherwise empty.
    tokenizer, initialize_tokenizer: [nlp.tokenizer] and [initialize.tokenizer] of the student.
    """

    name: str
    lang: str
    names: list[str] = field(default_factory=list)
    pipes: dict[str, str] = field(default_factory=dict)
    rules: dict[str, str] = field(default_factory=dict)
    models: dict[str, dict[str, Any]] = field(default_factory=dict)
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    schemes: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    encoding: dict[str, Any] = field(default_factory=dict)
    tokenizer: dict[str, Any] = field(default_factory=dict)
    initialize_tokenizer: dict[str, Any] = field(default_factory=dict)

    def notes(self) -> list[str]:
        """Say which pipes the student does not learn, and why."""
        copied = [
            f"{name!r} has no model to train. A student that has it gets the teacher's"
            for name in self.rules
        ]
        return copied + [f"{name!r} is left out: {why}" for name, why in self.left_out.items()]

    def transitions(self, name: str, keys: Collection[str]) -> dict[str, Any]:
        """Settings of a pipe's model, if it is a transition-based parser.

        keys: names of the settings.
        """
        model = self.models.get(name, {})
        if not str(model.get("@architectures")).startswith(PARSERS):
            return {}
        return {key: model[key] for key in keys if key in model}

    def text_heads(self) -> dict[str, str | None]:
        """Return the hidden layer of each `TextCatHead`, by the name of its pipe."""
        return {
            name: model.get("hidden")
            for name, model in self.models.items()
            if model.get("@architectures") == TEXT_HEAD
        }

    def vector_heads(self) -> dict[str, dict[str, Any]]:
        """Return the settings of each `VectorsHead`, by the name of its pipe."""
        return self._heads(VECTORS_HEAD, "pooling", "dense", "activation", "normalize")

    def pair_heads(self) -> dict[str, dict[str, Any]]:
        """Return the settings of each `PairHead`, and its pipe's, by the name of the pipe."""
        heads = self._heads(PAIR_HEAD, "hidden", "join")
        return {name: {**head, **self.settings.get(name, {})} for name, head in heads.items()}

    def qa_pipes(self) -> dict[str, dict[str, Any]]:
        """Return the settings of each `distil_qa`, by name."""
        return {name: self.settings[name] for name, each in self.pipes.items() if each == QA}

    def _heads(self, architecture: str, *names: str) -> dict[str, dict[str, Any]]:
        """Return settings of the models with an architecture, by the name of their pipe."""
        return {
            name: {key: model[key] for key in names if key in model}
            for name, model in self.models.items()
            if model.get("@architectures") == architecture
        }

    def differences(self, components: Mapping[str, Any]) -> list[str]:
        """Say which settings of the student's models keep it from starting as the teacher's pipes.

        components: [components] of the student. Without an encoder of ours in the teacher, no
            student starts from its pipes.
        """
        notes = []
        for name, model in self.models.items() if self.encoding else ():
            settings = components.get(name, {}).get("model")
            if settings is None:
                continue
            different = list(_differences(model, settings))
            if different:
                notes.append(
                    f"The model of {name!r} differs from the teacher's, whose weights may not fit "
                    f"it: {'; '.join(different)}. Give it the teacher's settings in the config, to "
                    "start from its weights."
                )
        return notes


def _differences(teacher: Mapping[str, Any], student: Mapping[str, Any]) -> Iterator[str]:
    """Say which settings of two models differ, apart from dimensions and token vectors."""
    keys = sorted({*teacher, *student} - {"nO", "nI", "tok2vec"})
    if teacher.get("@architectures") != student.get("@architectures"):
        keys = ["@architectures"]  # other architectures have other settings
    for key in keys:
        theirs, own = teacher.get(key), student.get(key)
        if theirs != own:
            yield f"{key} = {json.dumps(own)}, the teacher's is {json.dumps(theirs)}"


def read_teacher_pipes(pipeline: str, lang: str | None = None) -> TeacherPipes:
    """Read the config of a trained pipeline, or of a model of transformers. Its weights are not
    loaded.

    pipeline: directory or package, or a hub name.
    lang: language of the student, and of a model of transformers, see `describe`. None for the
        teacher's. A student of another language has a tokenizer of its own, and no rules.
    Raises ConfigError if there is no such pipeline.
    """
    from spacy_distil.distillation.pipeline.labels import KINDS
    from spacy_distil.distillation.pipeline.language import LANGUAGE_RULES, MULTILINGUAL
    from spacy_distil.hugging_face import describe, is_hugging_face

    if is_hugging_face(pipeline):
        return _describe_teacher(describe(pipeline, lang))
    config = read_config(pipeline)
    own = config["nlp"]["lang"]
    is_foreign = lang is not None and check_language(lang) != own != MULTILINGUAL
    tokenizers = get_lang_class(lang).default_config if lang and is_foreign else config
    teacher = TeacherPipes(
        pipeline,
        own,
        tokenizer=tokenizers["nlp"]["tokenizer"],
        initialize_tokenizer=tokenizers.get("initialize", {}).get("tokenizer", {}),
    )
    for name in config["nlp"]["pipeline"]:
        settings = config["components"][name]
        factory = settings["factory"]
        if factory in ENCODERS:
            if factory == "distil_transformer":
                model = settings["model"]
                teacher.encoding.update((key, model[key]) for key in ENCODING if key in model)
        elif name in config["nlp"]["disabled"]:
            teacher.left_out[name] = "it is disabled in the teacher"
        elif is_foreign and factory in LANGUAGE_RULES:
            teacher.left_out[name] = f"its rules are for {language_name(own)}"
        elif settings.get("model") is None:
            teacher.rules[name] = factory
        elif factory in KINDS:
            teacher.pipes[name] = SIMPLER.get(factory, factory)
            teacher.models[name] = settings["model"]
            kept = PAIR_SETTINGS.get(factory, ())
            teacher.settings[name] = {key: settings[key] for key in kept if key in settings}
            if factory == "distil_ner" and "scheme" in settings:
                teacher.schemes[name] = settings["scheme"]
        else:
            teacher.left_out[name] = (
                f"pipes of the kind {factory!r} cannot learn from a teacher. To learn what it "
                "decides, give the student a pipe for it with --pipeline, such as ner"
            )
    teacher.names.extend(
        name for name in config["nlp"]["pipeline"] if name in {*teacher.pipes, *teacher.rules}
    )
    return teacher


def _describe_teacher(model: Description) -> TeacherPipes:
    """Describe the pipeline that a model of transformers becomes."""
    if model.pipe is None or model.pipe_name is None:
        raise ConfigError(
            f"{model.name} is an encoder alone ({model.architecture}), and teaches no pipe. To "
            "distil it, use 'init-config encoder'."
        )
    defaults = get_lang_class(model.lang).default_config
    tags, name = model.tags, model.pipe_name
    return TeacherPipes(
        model.name,
        model.lang,
        names=[name],
        pipes={name: model.pipe},
        models={name: registry.fill({"model": model.model})["model"]},
        settings={name: dict(model.settings)},
        schemes={name: tags.schemes[0]} if tags and not tags.is_ambiguous else {},
        encoding=dict(model.encoding),
        tokenizer=defaults["nlp"]["tokenizer"],
        initialize_tokenizer=defaults["initialize"]["tokenizer"],
    )
