"""A teaching run, from its config to the saved student."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from confection import ConfigValidationError
from spacy.cli._util import setup_gpu
from spacy.language import Language
from spacy.schemas import ConfigSchemaTraining
from spacy.training.initialize import init_nlp
from spacy.training.loop import DIR_MODEL_BEST, create_evaluation_callback
from spacy.util import registry, resolve_dot_names
from thinc.api import Config
from wasabi import msg

from spacy_distil.component.shim import get_encoder
from spacy_distil.distillation.pipeline.cache import TeacherCache, open_cache
from spacy_distil.distillation.pipeline.checkpoint import Checkpoints
from spacy_distil.distillation.pipeline.config import (
    FREE_ON_RESUME,
    SECTION,
    PipelineDistilConfig,
    load_config,
)
from spacy_distil.distillation.pipeline.corpus import (
    Reader,
    TransferSet,
    fingerprint_annotation,
    read_transfer_set,
)
from spacy_distil.distillation.pipeline.fingerprints import fingerprint_docs, fingerprint_pipeline
from spacy_distil.distillation.pipeline.heads import PipeSettings, Plan, find_pairs, plan_heads
from spacy_distil.distillation.pipeline.heads.base import Array
from spacy_distil.distillation.pipeline.heads.silver import SilverHead
from spacy_distil.distillation.pipeline.hidden import (
    SETTING,
    HiddenStates,
    find_encoder,
    teacher_encoder,
)
from spacy_distil.distillation.pipeline.loop import HIDDEN, PipelineDistiller, annotate, train
from spacy_distil.distillation.pipeline.student import (
    can_start_from_teacher,
    check_gold_labels,
    copy_heads,
    save_labels,
    start_from_teacher,
)
from spacy_distil.errors import ConfigError, CorpusError
from spacy_distil.pipelines import load_pipeline
from spacy_distil.runs.directory import RunDirectory
from spacy_distil.students.layer_map import layer_map
from spacy_distil.text.docs import same_tokens


@dataclass(frozen=True)
class DistilledPipeline:
    """A finished run.

    path: the student that scored best on the development documents.
    step: at which it was. steps: of the whole run.
    score: weighted as [training.score_weights] says.
    """

    path: Path
    step: int
    steps: int
    score: float


def run(
    teacher: Language | str | Path,
    config: str | Path | Mapping[str, Any],
    output: Path,
    *,
    overrides: Mapping[str, Any] | None,
    gpu_id: int,
    resume: bool,
    force: bool,
) -> DistilledPipeline:
    """See `distil_pipeline`."""
    settings = load_config(config, overrides)
    directory = RunDirectory(
        output,
        settings="distil.cfg",
        results="distil.json",
        # The first two are written before it is known whether the documents are others.
        kept=frozenset({"labels", "start", "cache"}),
        free=FREE_ON_RESUME,
    )
    if not (resume or force):
        directory.refuse_run()
    setup_gpu(gpu_id)
    if not isinstance(teacher, Language):
        teacher = load_pipeline(str(teacher))

    inputs = {"the teacher": fingerprint_pipeline(teacher)}
    rules = {"resume": resume, "force": force}
    earlier = directory.resume_or_replace(settings.spacy, inputs, **rules)
    directory.write_settings(settings.spacy)
    try:
        nlp, started = make_student(settings, teacher, output, gpu_id)
        training = resolve_training(nlp.config)
        train_corpus, dev_corpus, text = resolve_corpora(nlp, settings)
    except ConfigValidationError as error:
        raise ConfigError(str(error).strip()) from error
    lessons = read_transfer_set(nlp, train_corpus, text)
    frozen = training["frozen_components"]
    check_gold_labels(nlp, [lesson.example for lesson in lessons.gold], frozen=frozen)
    inputs["the documents"] = fingerprint_docs(lessons.docs)
    inputs["their annotation"] = fingerprint_annotation(one.example for one in lessons.gold)
    development = list(dev_corpus(nlp))
    if not development:
        raise CorpusError("The development corpus has no documents in it: look at [paths] dev.")
    inputs["the development documents"] = fingerprint_annotation(development)
    if earlier is not None:
        # What could be told without reading the documents was the same.
        earlier = directory.resume_or_replace(settings.spacy, inputs, **rules)
    checkpoints = Checkpoints(output / "checkpoints")
    has_checkpoint = checkpoints.newest() is not None
    if directory.announce(earlier, resume=resume, has_checkpoint=has_checkpoint):
        checkpoints.remove()  # in case it was killed just before that
        return _distilled(output, earlier or {})
    for name, how in started.items():
        msg.info(f"{name} starts from {how}")
    teaching = make_distiller(
        nlp, teacher, settings, training, lessons, inputs, output, force=force
    )
    directory.write_results({"finished": False, "inputs": inputs})
    progress = train(
        teaching,
        lessons,
        settings,
        training,
        create_evaluation_callback(nlp, dev_corpus, training["score_weights"]),
        output,
    )
    score, step = progress.best()
    results = {
        "finished": True,
        "inputs": inputs,
        "start": started,
        "steps": progress.step,
        "step": step,
        "score": score,
        "words": progress.words,
        "seconds": round(progress.seconds, 1),
        "cache_bytes": teaching.cache.n_bytes if teaching.cache is not None else 0,
    }
    directory.write_results(results)
    checkpoints.remove()
    msg.good(f"Saved the best student, of step {step}, to {output / DIR_MODEL_BEST}")
    return _distilled(output, results)


def make_distiller(
    nlp: Language,
    teacher: Language,
    settings: PipelineDistilConfig,
    training: Mapping[str, Any],
    lessons: TransferSet,
    inputs: Mapping[str, str],
    output: Path,
    *,
    force: bool = False,
) -> PipelineDistiller:
    """The student with all that it learns from: what the teacher makes of the documents is
    computed, unless it is in the cache.

    nlp: the student. training: [training], resolved.
    inputs: fingerprints of "the teacher" and "the documents".
    output: gets the cache, unless the config says where that lies.
    """
    frozen = training["frozen_components"]
    has_text = len(lessons.all) > lessons.n_gold
    plan = _plan(nlp, teacher, settings, frozen, text=has_text)
    hidden = _hidden(nlp, teacher, settings, frozen)
    _describe(plan, hidden, lessons)
    cache = _cache(teacher, plan, hidden, lessons, settings, inputs, output, force)
    annotating = training["annotating_components"]
    return PipelineDistiller(nlp, plan.heads, plan.gold, hidden, cache, frozen, annotating)


def make_student(
    settings: PipelineDistilConfig, teacher: Language, output: Path, gpu_id: int
) -> tuple[Language, dict[str, str]]:
    """The initialized student.

    output: gets the teacher's labels, and the encoder that the student starts from.
    RETURNS (student, started): the latter says in words what encoder and heads start from.
    """
    config = save_labels(teacher, settings.spacy, output / "labels", settings.pipes)
    start, started = settings.student.start, {}
    if start != "config":
        reason = can_start_from_teacher(teacher, config)
        if reason is None:
            config = start_from_teacher(
                config,
                teacher,
                output / "start",
                settings.student.layers,
                settings.student.n_layers,
            )
        elif start == "teacher":
            raise ConfigError(
                f'{SECTION}.student.start = "teacher": {reason}. Set it to "config", to start '
                "from the encoder that [components] names."
            )
        else:
            msg.info(f"The student does not start from the teacher's layers: {reason}")
            start = "config"
    if start == "config":
        shutil.rmtree(output / "start", ignore_errors=True)  # of a run that was replaced
    nlp = init_nlp(config, use_gpu=gpu_id)
    if start != "config":
        encoder = find_encoder(nlp)
        assert encoder is not None
        layers = get_encoder(encoder.model).n_layers
        started[encoder.name] = f"{layers} of the teacher's layers"
        pairs = find_pairs(nlp, teacher, settings.pipes)
        # What is frozen, or comes from another pipeline, is to stay as it is.
        frozen = nlp.config["training"]["frozen_components"]
        made = {name for name, each in config["components"].items() if "factory" in each}
        pairs = {name: pairs[name] for name in pairs if name in made and name not in frozen}
        for name, how in copy_heads(nlp, teacher, pairs).items():
            started[name] = "the teacher's" if how == "copied" else f"random weights: {how}"
    return nlp, started


def resolve_training(config: Config) -> dict[str, Any]:
    """[training], with its functions."""
    return registry.resolve(config.interpolate()["training"], schema=ConfigSchemaTraining)


def resolve_corpora(
    nlp: Language, settings: PipelineDistilConfig
) -> tuple[Reader, Reader, Reader | None]:
    """Readers of the training, the development and the unlabelled documents."""
    config = nlp.config.interpolate()
    names = [config["training"]["train_corpus"], config["training"]["dev_corpus"]]
    train, dev = resolve_dot_names(config, names)
    if settings.corpus is None:
        return train, dev, None
    return train, dev, resolve_dot_names(config, [settings.corpus])[0]


def _plan(
    nlp: Language,
    teacher: Language,
    settings: PipelineDistilConfig,
    frozen: Sequence[str],
    *,
    text: bool,
) -> Plan:
    default = PipeSettings(temperature=settings.temperature)
    pairs = find_pairs(nlp, teacher, settings.pipes)
    pipes = {**{name: default for name in pairs if name not in frozen}, **settings.pipes}
    plan = plan_heads(nlp, teacher, pipes, frozen=frozen, text=text)
    for head in plan.heads.values():
        if isinstance(head, SilverHead):
            for stage in settings.stages:
                head.check_weights(stage.soft, stage.gold)
    return plan


def _hidden(
    nlp: Language, teacher: Language, settings: PipelineDistilConfig, frozen: Sequence[str]
) -> HiddenStates | None:
    if not any(stage.hidden for stage in settings.stages):
        return None
    student = find_encoder(nlp)
    advice = f"Give no stage of [{SECTION}.stages] a weight for hidden: set its share to 0."
    if student is None:
        raise ConfigError(
            "The student has no component 'distil_transformer', whose hidden states could be "
            f"taught. {advice}"
        )
    if student.name in frozen or not get_encoder(student.model).is_trainable:
        raise ConfigError(
            f"The student's encoder {student.name!r} is frozen, and cannot learn hidden states. "
            f"{advice}"
        )
    source = teacher_encoder(teacher)
    layers = layer_map(
        settings.hidden.layers,
        get_encoder(student.model).n_layers,
        get_encoder(source.model).n_layers,
        name=SETTING,
    )
    return HiddenStates(student, source, layers)


def _describe(plan: Plan, hidden: HiddenStates | None, lessons: TransferSet) -> None:
    for name, head in plan.heads.items():
        how = "decisions" if isinstance(head, SilverHead) else "distribution"
        msg.info(f"{name} learns the teacher's {how}")
    if plan.gold:
        msg.info(f"Learning from annotation alone: {', '.join(plan.gold)}")
    if hidden is not None:
        pairs = zip(hidden.student_layers, hidden.teacher_layers, strict=True)
        msg.info(f"Hidden states: layer {', '.join(f'{a} of {b}' for a, b in pairs)}")
    more = len(lessons.all) - lessons.n_gold
    text = f", and {more:,} without" if more else ""
    msg.info(
        f"{lessons.n_gold:,} documents with annotation{text}: {lessons.n_tokens:,} tokens in all"
    )


def _cache(
    teacher: Language,
    plan: Plan,
    hidden: HiddenStates | None,
    lessons: TransferSet,
    settings: PipelineDistilConfig,
    inputs: Mapping[str, str],
    output: Path,
    force: bool,
) -> TeacherCache | None:
    """What the teacher makes of all documents; `None` where nothing is learned from it."""
    learned = plan.heads if any(stage.soft for stage in settings.stages) else {}
    fields = {name: head.fields for name, head in learned.items()}
    sources = {name: head.source for name, head in learned.items()}
    if hidden is not None:
        fields[HIDDEN], sources[HIDDEN] = hidden.fields, hidden.source
    if not fields:
        return None
    recorders: dict[str, list[tuple[str, Any]]] = {}  # the teacher's name of the pipe -> heads
    for name, head in plan.heads.items():
        source = settings.pipes.get(name, PipeSettings()).source(name)
        recorders.setdefault(source, []).append((name, head))
    examples = lessons.all

    def record(numbers: range) -> dict[str, dict[str, list[Array]]]:
        docs = [same_tokens(examples[number].predicted, teacher.vocab) for number in numbers]
        records = {}
        for source, pipe in teacher.pipeline:
            for name, head in recorders.get(source, ()):
                if name in fields:
                    records[name] = head.record(docs)
            docs = annotate(pipe, docs)
            if hidden is not None and pipe is hidden.teacher:
                records[HIDDEN] = hidden.record(docs)
        return records

    return open_cache(
        Path(settings.cache) if settings.cache else output / "cache",
        fingerprint={key: inputs[key] for key in ("the teacher", "the documents")},
        fields=fields,
        sources=sources,
        lengths=[len(one) for one in examples],
        record=record,
        force=force,
    )


def _distilled(output: Path, results: Mapping[str, Any]) -> DistilledPipeline:
    return DistilledPipeline(
        output / DIR_MODEL_BEST, results["step"], results["steps"], results["score"]
    )
