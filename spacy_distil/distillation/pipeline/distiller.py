"""A student pipeline with everything that it learns from."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from spacy.language import Language
from spacy.training import Example
from thinc.api import Model, Optimizer
from wasabi import msg

from spacy_distil.component.pipe import DistilTransformerPipe
from spacy_distil.component.shim import get_encoder
from spacy_distil.distillation.pipeline.cache import TeacherCache, open_cache
from spacy_distil.distillation.pipeline.calls import TeacherCalls, annotate
from spacy_distil.distillation.pipeline.config import (
    SECTION,
    PipelineDistilConfig,
    PipelineStage,
)
from spacy_distil.distillation.pipeline.corpus import TransferExample, TransferSet
from spacy_distil.distillation.pipeline.decisions import Decisions, warn_of_unknown_labels
from spacy_distil.distillation.pipeline.heads import (
    Head,
    LearningPlan,
    PipeSettings,
    find_pairs,
    plan_heads,
)
from spacy_distil.distillation.pipeline.heads.base import Records
from spacy_distil.distillation.pipeline.heads.pairs import is_learner
from spacy_distil.distillation.pipeline.heads.silver import SilverHead
from spacy_distil.distillation.pipeline.hidden import (
    SETTING,
    EncoderTarget,
    HiddenStates,
    find_encoder,
    teacher_encoder,
    update_encoder,
)
from spacy_distil.distillation.pipeline.recorder import HIDDEN, VECTORS, TeacherRecorder
from spacy_distil.distillation.pipeline.vectors import DocVectors
from spacy_distil.errors import ConfigError
from spacy_distil.students.layer_map import layer_map


@dataclass
class PipelineDistiller:
    """A student pipeline and everything that it learns from.

    nlp: the student.
    heads: the pipes that learn from the teacher, by their names in the student.
    gold: the pipes that learn from annotation alone. See `LearningPlan`.
    hidden: how the encoder learns from the teacher's. None if it does not.
    vectors: how the encoder learns the teacher's vectors of docs. None if it does not.
    cache: the teacher's records of all documents. None if nothing is learned from the teacher.
    frozen, annotating: as in [training].
    """

    nlp: Language
    heads: Mapping[str, Head]
    gold: Mapping[str, Head | None]
    hidden: HiddenStates | None = None
    cache: TeacherCache | None = None
    frozen: Sequence[str] = ()
    annotating: Sequence[str] = ()
    vectors: DocVectors | None = None

    def update(
        self,
        batch: Sequence[TransferExample],
        stage: PipelineStage,
        *,
        drop: float = 0.0,
        losses: dict[str, float] | None = None,
    ) -> dict[str, float]:
        """Gather the gradients of a batch, as `nlp.update(..., sgd=False)` does.

        stage: says what the pipes learn.
        losses: losses to add to. None starts new ones.
        RETURNS: the losses by pipe.
        """
        losses = {} if losses is None else losses
        # Copies, as in nlp.update: pipes may annotate the predicted docs.
        examples = [Example(each.predicted.copy(), each.reference) for each in batch]
        records: dict[str, Records] = {}
        if self.cache is not None:
            records = self.cache.read([each.number for each in batch])
        for name, pipe in self.nlp.pipeline:
            if name not in self.frozen:
                self._update_pipe(name, pipe, examples, records, stage, drop, losses)
            if name in self.annotating:
                annotated = annotate(pipe, [example.predicted for example in examples])
                for example, doc in zip(examples, annotated, strict=True):
                    example.predicted = doc
        for name, loss in losses.items():
            losses[name] = float(loss)  # pipes may give numbers of an array library
        return losses

    def finish_update(self, optimizer: Optimizer) -> None:
        """Take an optimizer step with the gathered gradients."""
        for name, pipe in trainable_pipes(self.nlp):
            if name not in self.frozen:
                pipe.finish_update(optimizer)
        if self.hidden is not None:
            self.hidden.finish_update(optimizer)

    def _update_pipe(
        self,
        name: str,
        pipe: Any,
        examples: list[Example],
        records: Mapping[str, Records],
        stage: PipelineStage,
        drop: float,
        losses: dict[str, float],
    ) -> None:
        targets: list[tuple[EncoderTarget, Records, float]] = []
        if self.hidden is not None and stage.hidden and pipe is self.hidden.student:
            targets.append((self.hidden, records[HIDDEN], stage.hidden))
        if self.vectors is not None and stage.vectors and pipe is self.vectors.student:
            targets.append((self.vectors, records[VECTORS], stage.vectors))
        if targets:
            update_encoder(pipe, examples, targets, losses)
        elif not (stage.soft or stage.gold):
            pass
        elif (head := self.heads.get(name)) is not None:
            head.update(
                examples,
                records.get(name, {}),
                soft=stage.soft,
                gold=stage.gold,
                drop=drop,
                losses=losses,
            )
        elif (head := self.gold.get(name)) is not None:
            head.update(examples, {}, soft=0.0, gold=1.0, drop=drop, losses=losses)
        elif hasattr(pipe, "update"):
            pipe.update(examples, drop=drop, sgd=None, losses=losses)


def trainable_pipes(nlp: Language) -> Iterator[tuple[str, Any]]:
    """Yield name and pipe of all pipes that `nlp.update` takes for trainable."""
    for name, pipe in nlp.pipeline:
        if getattr(pipe, "is_trainable", False) and isinstance(getattr(pipe, "model", 0), Model):
            yield name, pipe


def make_distiller(
    nlp: Language,
    teacher: Language,
    settings: PipelineDistilConfig,
    training: Mapping[str, Any],
    transfer_set: TransferSet,
    inputs: Mapping[str, str],
    output: Path,
    *,
    decisions: Decisions | None = None,
    force: bool = False,
) -> PipelineDistiller:
    """Prepare a student to learn. This runs the teacher, unless the cache has all its records.

    nlp: the student.
    training: [training], resolved.
    inputs: fingerprints of "the teacher" and "the documents".
    output: receives the cache, unless the config names another directory for it.
    decisions: of all documents, for pipes that learn from a teacher of no known kind.
    force: replace a cache of other inputs.
    """
    frozen = training["frozen_components"]
    plan = _make_plan(nlp, teacher, settings, transfer_set, frozen)
    hidden = _make_hidden(nlp, teacher, settings, frozen)
    vectors = make_vectors(nlp, teacher, settings, frozen)
    _check_learners(nlp, settings, frozen)
    _describe(plan, teacher, hidden, transfer_set)
    heads = plan.heads if any(stage.soft for stage in settings.stages) else {}
    if decisions is not None:
        warn_of_unknown_labels(heads, decisions, nlp.vocab)
    calls = TeacherCalls(settings.teacher)
    recorder = TeacherRecorder(teacher, transfer_set, heads, hidden, calls, decisions, vectors)
    cache = None
    if recorder.fields:
        cache = open_cache(
            cache_directory(settings, output),
            fingerprint={key: inputs[key] for key in ("the teacher", "the documents")},
            fields=recorder.fields,
            sources=recorder.sources,
            lengths=[len(example) for example in transfer_set.all],
            record=recorder.record,
            force=force,
            shard_tokens=settings.teacher.shard_tokens,
        )
    annotating = training["annotating_components"]
    return PipelineDistiller(nlp, plan.heads, plan.gold, hidden, cache, frozen, annotating, vectors)


def cache_directory(settings: PipelineDistilConfig, output: Path) -> Path:
    """Return the directory of the teacher's cache for a run that writes to `output`."""
    return Path(settings.cache) if settings.cache else output / "cache"


def _make_plan(
    nlp: Language,
    teacher: Language,
    settings: PipelineDistilConfig,
    transfer_set: TransferSet,
    frozen: Collection[str],
) -> LearningPlan:
    default = PipeSettings(temperature=settings.temperature)
    pairing = find_pairs(nlp, teacher, settings.pipes, frozen=frozen)
    pipes = {**dict.fromkeys(pairing.sources, default), **settings.pipes}
    plan = plan_heads(nlp, teacher, pipes, frozen=frozen, text=transfer_set.n_text > 0)
    for head in plan.heads.values():
        if isinstance(head, SilverHead):
            for stage in settings.stages:
                head.check_weights(stage.soft, stage.gold)
    return plan


def _make_hidden(
    nlp: Language, teacher: Language, settings: PipelineDistilConfig, frozen: Collection[str]
) -> HiddenStates | None:
    """Pair the layers of the encoders, or return None if no stage learns hidden states."""
    if not any(stage.hidden for stage in settings.stages):
        return None
    student = _learning_encoder(nlp, frozen, "hidden")
    source = teacher_encoder(teacher)
    layers = layer_map(
        settings.hidden.layers,
        get_encoder(student.model).n_layers,
        get_encoder(source.model).n_layers,
        name=SETTING,
    )
    return HiddenStates(student, source, layers)


def make_vectors(
    nlp: Language, teacher: Language, settings: PipelineDistilConfig, frozen: Collection[str]
) -> DocVectors | None:
    """Pair the encoders for vectors of docs, or return None if no stage learns them."""
    if not any(stage.vectors for stage in settings.stages):
        return None
    return DocVectors(_learning_encoder(nlp, frozen, "vectors"), teacher)


def _learning_encoder(
    nlp: Language, frozen: Collection[str], weight: Literal["hidden", "vectors"]
) -> DistilTransformerPipe:
    """Return the student's encoder.

    weight: the name of the weight that it learns by.
    Raises ConfigError if there is none, or if it does not learn.
    """
    what = {"hidden": "hidden states", "vectors": "doc vectors"}[weight]
    advice = f"Give no stage of [{SECTION}.stages] a weight for {weight}: set its share to 0."
    student = find_encoder(nlp)
    if student is None:
        raise ConfigError(
            f"The student has no component 'distil_transformer', whose {what} could be learned. "
            f"{advice}"
        )
    if student.name in frozen or not get_encoder(student.model).is_trainable:
        raise ConfigError(
            f"The student's encoder {student.name!r} is frozen, and cannot learn {what}. {advice}"
        )
    return student


def _check_learners(nlp: Language, settings: PipelineDistilConfig, frozen: Collection[str]) -> None:
    """Raise ConfigError for a stage that only pipes learn in, if the student has none."""
    if any(is_learner(pipe) for name, pipe in nlp.pipeline if name not in frozen):
        return
    for stage in settings.stages:
        if not (stage.hidden or stage.vectors):
            raise ConfigError(
                f"[{SECTION}.stages.{stage.name}] learns soft targets or annotation, but the "
                "student has no pipe that learns them. Set its share to 0. The encoder alone "
                "learns in the stages hidden and vectors."
            )


def _describe(
    plan: LearningPlan, teacher: Language, hidden: HiddenStates | None, transfer_set: TransferSet
) -> None:
    """Tell the user who learns what, and in yellow what may be missing by mistake."""
    for name, head in plan.heads.items():
        is_silver = isinstance(head, SilverHead) or head.settings.target == "silver"
        target = "decisions" if is_silver else "distribution"
        source = head.settings.source(name)
        msg.info(f"{name} learns the teacher's {target}{f' ({source})' if source != name else ''}")
    if plan.gold:
        msg.info(f"Learning from annotation alone: {', '.join(plan.gold)}")
    for name, reason in plan.alone.items():
        msg.warn(f"{name} learns from annotation alone: {reason}")
    if plan.unused:
        pipes = [f"{name} ({teacher.get_pipe_meta(name).factory})" for name in plan.unused]
        msg.warn(f"Pipes of the teacher that the student does not have: {', '.join(pipes)}")
    if hidden is not None:
        pairs = zip(hidden.student_layers, hidden.teacher_layers, strict=True)
        msg.info(f"Hidden states: layer {', '.join(f'{a} of {b}' for a, b in pairs)}")
    text = f", and {transfer_set.n_text:,} without" if transfer_set.n_text else ""
    msg.info(
        f"{transfer_set.n_gold:,} documents with annotation{text}: "
        f"{transfer_set.n_tokens:,} tokens in all"
    )
