"""The training loop: `spacy train`'s, with a teacher."""

from __future__ import annotations

import random
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from timeit import default_timer as timer
from typing import Any

from spacy.language import Language
from spacy.tokens import Doc
from spacy.training import Example
from spacy.training.loop import (
    DIR_MODEL_BEST,
    DIR_MODEL_LAST,
    create_before_to_disk_callback,
    subdivide_batch,
    update_meta,
)
from thinc.api import Model, Optimizer, constant, fix_random_seed
from wasabi import msg

from spacy_distil.distillation.pipeline.cache import TeacherCache
from spacy_distil.distillation.pipeline.checkpoint import Checkpoints
from spacy_distil.distillation.pipeline.config import PipelineDistilConfig, Stage
from spacy_distil.distillation.pipeline.corpus import TransferExample, TransferSet
from spacy_distil.distillation.pipeline.heads.base import Head, Records
from spacy_distil.distillation.pipeline.hidden import HiddenStates
from spacy_distil.errors import CorpusError
from spacy_distil.runs.files import atomic_directory

# Name of the hidden states among the records, which no pipe can have.
HIDDEN = "[hidden]"


@dataclass
class PipelineDistiller:
    """A student, and what it learns from.

    nlp: the student.
    heads: the pipes that learn from the teacher, by their names in the student.
    gold: the trainable pipes that learn from annotation alone, with what masks documents that have
        none where a pipe does not do so itself.
    hidden: how the encoder learns from the teacher's; `None` where it does not.
    cache: what the teacher makes of the documents; `None` where nothing is learned from it.
    frozen, annotating: as in [training].
    """

    nlp: Language
    heads: Mapping[str, Head]
    gold: Mapping[str, Head | None]
    hidden: HiddenStates | None = None
    cache: TeacherCache | None = None
    frozen: Sequence[str] = ()
    annotating: Sequence[str] = ()

    def update(
        self,
        lessons: Sequence[TransferExample],
        stage: Stage,
        *,
        drop: float = 0.0,
        losses: dict[str, float] | None = None,
    ) -> dict[str, float]:
        """Gather the gradients of a batch, as `nlp.update(..., sgd=False)` does.

        lessons: the batch.
        stage: says what is learned.
        RETURNS: losses, added to those that were given.
        """
        losses = {} if losses is None else losses
        # Copies, as nlp.update makes: pipes may annotate the predicted docs.
        examples = [Example(lesson.predicted.copy(), lesson.example.y) for lesson in lessons]
        records: dict[str, Records] = {}
        if self.cache is not None:
            records = self.cache.read([lesson.number for lesson in lessons])
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
        """Take an optimizer step with what was gathered."""
        for name, pipe in _trainable(self.nlp):
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
        stage: Stage,
        drop: float,
        losses: dict[str, float],
    ) -> None:
        if self.hidden is not None and stage.hidden and pipe is self.hidden.student:
            self.hidden.update(examples, records[HIDDEN], weight=stage.hidden, losses=losses)
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


@dataclass
class Progress:
    """Where a run is, as JSON can hold it.

    results: (score, step) of each evaluation.
    step: the last one taken. words: tokens seen. seconds: all processes of the run together.
    """

    results: list[tuple[float, int]] = field(default_factory=list)
    step: int = 0
    words: int = 0
    seconds: float = 0.0

    def best(self) -> tuple[float, int]:
        """Score and step of the best evaluation; of equals the last, as `spacy train` keeps it."""
        return max(self.results)

    def waited(self, start: int) -> int:
        """Steps since the first of the best evaluations, counted from the step `start` on.

        start: of the last stage: the others do not end a run.
        """
        if self.step < start or not self.results:
            return 0
        best = max(score for score, _ in self.results)
        return self.step - max(start, next(i for score, i in self.results if score == best))


def train(
    teaching: PipelineDistiller,
    lessons: TransferSet,
    config: PipelineDistilConfig,
    settings: Mapping[str, Any],
    evaluate: Callable[[], tuple[float, dict[str, Any]]],
    output: Path,
) -> Progress:
    """Teach the student, from the checkpoint in `output` if there is one.

    settings: [training], resolved.
    evaluate: gives the main score on the development documents, and all scores.
    output: gets `model-best` and `model-last`.
    """
    nlp, optimizer = teaching.nlp, settings["optimizer"]
    frequency, patience = settings["eval_frequency"], settings["patience"]
    seed = settings["seed"] or 0
    checkpoints = Checkpoints(output / "checkpoints")
    before_to_disk = create_before_to_disk_callback(settings["before_to_disk"])
    progress, start = Progress(), 0
    if (path := checkpoints.newest()) is not None:
        step, state = checkpoints.load(path, nlp, optimizer, teaching.hidden)
        state["results"] = [(score, i) for score, i in state["results"]]
        progress, start = Progress(**state), step + 1
        if progress.best()[1] == step:  # it may have been killed before the copy was there
            _copy(output / DIR_MODEL_LAST, output / DIR_MODEL_BEST)
    dropout = settings["dropout"]
    dropouts: Any = constant(dropout) if isinstance(dropout, (int, float)) else dropout
    for _ in range(start):  # schedules are generators: theirs is the only way to step N
        optimizer.step_schedules()
        next(dropouts)

    def save_last() -> None:
        with nlp.use_params(optimizer.averages or {}):
            before_to_disk(nlp).to_disk(output / DIR_MODEL_LAST)

    losses = _no_losses(teaching)
    before, began = progress.seconds, timer()
    with nlp.select_pipes(disable=teaching.frozen):
        log_step, finish_log = settings["logger"](nlp, sys.stdout, sys.stderr)
    try:
        batches = make_batches(lessons, config, settings["batcher"], seed)
        for step, (epoch, batch) in enumerate(batches):
            if step < start:
                continue
            if step == start:
                _reseed(seed, step)
            if patience and progress.waited(config.stages[-1].start) >= patience:
                break
            if settings["before_update"]:
                settings["before_update"](nlp, {"step": step, "epoch": epoch})
            drop = next(dropouts)
            for part in subdivide_batch(batch, settings["accumulate_gradient"]):
                teaching.update(part, config.stage_at(step), drop=drop, losses=losses)
            teaching.finish_update(optimizer)
            optimizer.step_schedules()
            progress.step = step
            progress.words += sum(map(len, batch))
            progress.seconds = before + timer() - began
            if step % frequency:
                log_step(None)
                continue
            with nlp.use_params(optimizer.averages or {}):
                score, scores = evaluate()
            progress.results.append((score, step))
            info = {
                "epoch": epoch,
                "step": step,
                "score": score,
                "other_scores": scores,
                "losses": losses,
                "checkpoints": progress.results,
                "seconds": int(progress.seconds),
                "words": progress.words,
                "output_path": str(output / DIR_MODEL_LAST),
            }
            with nlp.select_pipes(disable=teaching.frozen):
                update_meta(settings, nlp, info)
            save_last()
            checkpoints.save(step, nlp, optimizer, teaching.hidden, asdict(progress))
            if progress.best()[1] == step:
                _copy(output / DIR_MODEL_LAST, output / DIR_MODEL_BEST)
            log_step(info)
            losses = _no_losses(teaching)
            _reseed(seed, step + 1)
    except BaseException as error:
        if progress.results:
            msg.warn(
                f"Stopped at step {progress.step} by {error!r}. Go on from step "
                f"{progress.results[-1][1]}, the last evaluation, with --resume"
            )
        raise
    finally:
        finish_log()
    save_last()
    return progress


def make_batches(
    lessons: TransferSet,
    config: PipelineDistilConfig,
    batcher: Callable[[Iterable[Any]], Iterable[Sequence[TransferExample]]],
    seed: int,
) -> Iterator[tuple[int, Sequence[TransferExample]]]:
    """The batches of all steps, each with the number of its pass over the documents.

    They depend on the seed alone, where the batcher is not random itself. A stage that learns from
    annotation only passes over the documents that have some. As with `spacy train`, there is one
    step more than `max_steps`.
    """
    step = epoch = 0
    while step <= config.max_steps:
        stage = config.stage_at(step)
        order = list(lessons.all if stage.uses_text else lessons.gold)
        random.Random(f"{seed} {epoch}").shuffle(order)
        before = step
        for batch in batcher(order):
            if step > config.max_steps or config.stage_at(step) is not stage:
                break
            yield epoch, batch
            step += 1
        if step == before and config.stage_at(step) is stage:
            raise CorpusError(
                "[training.batcher] makes no batch of the documents. Where it has "
                "discard_oversize = true, it drops those that are longer than a batch."
            )
        epoch += 1


def _no_losses(teaching: PipelineDistiller) -> dict[str, float]:
    return {name: 0.0 for name, _ in _trainable(teaching.nlp)}


def _trainable(nlp: Language) -> Iterator[tuple[str, Any]]:
    """The pipes that have something to train, as `nlp.update` tells them."""
    for name, pipe in nlp.pipeline:
        if getattr(pipe, "is_trainable", False) and isinstance(getattr(pipe, "model", 0), Model):
            yield name, pipe


def annotate(pipe: Any, docs: list[Doc]) -> list[Doc]:
    """The docs with the annotation of one pipe, in one batch."""
    if hasattr(pipe, "pipe"):
        return list(pipe.pipe(docs, batch_size=max(1, len(docs))))
    return [pipe(doc) for doc in docs]


def _reseed(seed: int, step: int) -> None:
    """Begin all random numbers anew, so that a run resumed here goes on like one that was not."""
    fix_random_seed((seed * 1_000_003 + step) % 2**32)


def _copy(source: Path, target: Path) -> None:
    """Replace a directory by a copy of another."""
    with atomic_directory(target) as unfinished:
        shutil.copytree(source, unfinished, dirs_exist_ok=True)
