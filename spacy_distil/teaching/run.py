"""A teaching run, from its config to the saved student."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spacy.cli._util import setup_gpu, show_validation_error
from spacy.language import Language
from spacy.schemas import ConfigSchemaTraining
from spacy.training.initialize import init_nlp
from spacy.training.loop import DIR_MODEL_BEST, create_evaluation_callback
from spacy.util import registry, resolve_dot_names
from thinc.api import Config
from wasabi import msg

from spacy_distil.errors import ConfigError
from spacy_distil.pipelines import load_pipeline
from spacy_distil.run_directory import RunDirectory
from spacy_distil.shim import get_encoder
from spacy_distil.teaching.cache import TeacherCache, open_cache
from spacy_distil.teaching.checkpoint import Checkpoints
from spacy_distil.teaching.config import FREE_ON_RESUME, SECTION, TeachingConfig, load_config
from spacy_distil.teaching.corpus import (
    Lessons,
    fingerprint_annotation,
    read_lessons,
    retokenized,
)
from spacy_distil.teaching.fingerprints import fingerprint_docs, fingerprint_pipeline
from spacy_distil.teaching.heads import PipeTeaching, Plan, find_pairs, plan_heads
from spacy_distil.teaching.heads.base import Array
from spacy_distil.teaching.heads.silver import SilverHead
from spacy_distil.teaching.hidden import HiddenStates, find_encoder, layer_map, teacher_encoder
from spacy_distil.teaching.loop import HIDDEN, Teaching, train
from spacy_distil.teaching.student import (
    can_start_from_teacher,
    check_gold_labels,
    copy_heads,
    save_labels,
    start_from_teacher,
)


@dataclass(frozen=True)
class Taught:
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
    overwrite: bool,
) -> Taught:
    """See `teach`."""
    settings = load_config(config, overrides)
    directory = RunDirectory(
        output,
        settings="teaching.cfg",
        results="teaching.json",
        # The first two are written before it is known whether the documents are others.
        kept=frozenset({"labels", "start", "cache"}),
        free=FREE_ON_RESUME,
    )
    if not (resume or overwrite):
        directory.refuse_run()
    setup_gpu(gpu_id)
    if not isinstance(teacher, Language):
        teacher = load_pipeline(str(teacher))

    inputs = {"the teacher": fingerprint_pipeline(teacher)}
    rules = {"resume": resume, "overwrite": overwrite}
    earlier = directory.settle(settings.spacy, inputs, **rules)
    directory.write_settings(settings.spacy)
    with show_validation_error(hint_fill=False):
        nlp, started = make_student(settings, teacher, output, gpu_id)
        training = _training(nlp.config)
    train_corpus, dev_corpus, text = _corpora(nlp, settings)
    lessons = read_lessons(nlp, train_corpus, text)
    frozen = training["frozen_components"]
    check_gold_labels(nlp, [lesson.example for lesson in lessons.gold], frozen=frozen)
    inputs["the documents"] = fingerprint_docs(lessons.docs)
    inputs["their annotation"] = fingerprint_annotation(one.example for one in lessons.gold)
    inputs["the development documents"] = fingerprint_annotation(dev_corpus(nlp))
    if earlier is not None:
        # What could be told without reading the documents was the same.
        earlier = directory.settle(settings.spacy, inputs, **rules)
    if earlier and earlier.get("finished"):
        msg.good(f"Finished already: {output / DIR_MODEL_BEST}")
        return _taught(output, earlier)
    if earlier is not None:
        msg.info(f"Resuming the run in {output}")
    elif resume:
        msg.info(f"Nothing to resume in {output}: starting")
    directory.write_results({"finished": False, "inputs": inputs})

    for name, how in started.items():
        msg.info(f"{name} starts from {how}")
    teaching = make_teaching(
        nlp, teacher, settings, training, lessons, inputs, output, overwrite=overwrite
    )
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
        "steps": settings.max_steps,
        "step": step,
        "score": score,
        "words": progress.words,
        "seconds": round(progress.seconds, 1),
        "cache_bytes": teaching.cache.n_bytes if teaching.cache is not None else 0,
    }
    directory.write_results(results)
    Checkpoints(output / "checkpoints").remove()
    msg.good(f"Saved the best student, of step {step}, to {output / DIR_MODEL_BEST}")
    return _taught(output, results)


def make_teaching(
    nlp: Language,
    teacher: Language,
    settings: TeachingConfig,
    training: Mapping[str, Any],
    lessons: Lessons,
    inputs: Mapping[str, str],
    output: Path,
    *,
    overwrite: bool = False,
) -> Teaching:
    """The student with all that it learns from: what the teacher makes of the documents is
    computed, unless it is in the cache.

    nlp: the student. training: [training], resolved.
    inputs: fingerprints of "the teacher" and "the documents".
    output: gets the cache, unless the config says where that lies.
    """
    frozen = training["frozen_components"]
    plan = _plan(nlp, teacher, settings, frozen)
    hidden = _hidden(nlp, teacher, settings)
    _describe(plan, hidden, lessons)
    cache = _cache(teacher, plan, hidden, lessons, settings, inputs, output, overwrite)
    annotating = training["annotating_components"]
    return Teaching(nlp, plan.heads, plan.gold, hidden, cache, frozen, annotating)


def make_student(
    settings: TeachingConfig, teacher: Language, output: Path, gpu_id: int
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
    nlp = init_nlp(config, use_gpu=gpu_id)
    if start != "config":
        encoder = find_encoder(nlp)
        assert encoder is not None
        layers = get_encoder(encoder.model).n_layers
        started[encoder.name] = f"{layers} of the teacher's layers"
        pairs = find_pairs(nlp, teacher, settings.pipes)
        for name, how in copy_heads(nlp, teacher, pairs).items():
            started[name] = "the teacher's" if how == "copied" else f"random weights: {how}"
    return nlp, started


def _training(config: Config) -> dict[str, Any]:
    """[training], with its functions."""
    return registry.resolve(config.interpolate()["training"], schema=ConfigSchemaTraining)


def _corpora(nlp: Language, settings: TeachingConfig) -> tuple[Any, Any, Any]:
    """Readers of the training, the development and the unlabelled documents."""
    config = nlp.config.interpolate()
    names = [config["training"]["train_corpus"], config["training"]["dev_corpus"]]
    if settings.corpus is None:
        return (*resolve_dot_names(config, names), None)
    return tuple(resolve_dot_names(config, [*names, settings.corpus]))


def _plan(
    nlp: Language, teacher: Language, settings: TeachingConfig, frozen: Sequence[str]
) -> Plan:
    default = PipeTeaching(temperature=settings.temperature)
    pairs = find_pairs(nlp, teacher, settings.pipes)
    pipes = {**{name: default for name in pairs if name not in frozen}, **settings.pipes}
    plan = plan_heads(nlp, teacher, pipes, frozen=frozen)
    for head in plan.heads.values():
        if isinstance(head, SilverHead):
            for stage in settings.stages:
                head.check_weights(stage.soft, stage.gold)
    return plan


def _hidden(nlp: Language, teacher: Language, settings: TeachingConfig) -> HiddenStates | None:
    if not any(stage.hidden for stage in settings.stages):
        return None
    student = find_encoder(nlp)
    if student is None:
        raise ConfigError(
            "The student has no component 'distil_transformer', whose hidden states could be "
            f"taught. Set share = 0 in [{SECTION}.stages.hidden]."
        )
    source = teacher_encoder(teacher)
    layers = layer_map(
        settings.hidden.layers,
        get_encoder(student.model).n_layers,
        get_encoder(source.model).n_layers,
    )
    return HiddenStates(student, source, layers)


def _describe(plan: Plan, hidden: HiddenStates | None, lessons: Lessons) -> None:
    for name, head in plan.heads.items():
        msg.info(f"{name} learns from the teacher: {type(head).__name__}")
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
    lessons: Lessons,
    settings: TeachingConfig,
    inputs: Mapping[str, str],
    output: Path,
    overwrite: bool,
) -> TeacherCache | None:
    """What the teacher makes of all documents; `None` where nothing is learned from it."""
    fields = {}
    if any(stage.soft for stage in settings.stages):
        fields = {name: head.fields for name, head in plan.heads.items()}
    if hidden is not None:
        fields[HIDDEN] = hidden.fields
    if not fields:
        return None
    recorders: dict[str, list[tuple[str, Any]]] = {}  # the teacher's name of the pipe -> heads
    for name in plan.heads:
        source = settings.pipes.get(name, PipeTeaching()).teacher or name
        recorders.setdefault(source, []).append((name, plan.heads[name]))
    examples = lessons.all

    def record(numbers: range) -> dict[str, dict[str, list[Array]]]:
        docs = [retokenized(examples[number].predicted, teacher) for number in numbers]
        records = {}
        for source, pipe in teacher.pipeline:
            for name, head in recorders.get(source, ()):
                if name in fields:
                    records[name] = head.record(docs)
            docs = list(
                pipe.pipe(docs, batch_size=len(docs)) if hasattr(pipe, "pipe") else map(pipe, docs)
            )
        if hidden is not None:
            records[HIDDEN] = hidden.record(docs)
        return records

    return open_cache(
        Path(settings.cache) if settings.cache else output / "cache",
        fingerprint={key: inputs[key] for key in ("the teacher", "the documents")},
        fields=fields,
        lengths=[len(one) for one in examples],
        record=record,
        overwrite=overwrite,
    )


def _taught(output: Path, results: Mapping[str, Any]) -> Taught:
    return Taught(output / DIR_MODEL_BEST, results["step"], results["steps"], results["score"])
