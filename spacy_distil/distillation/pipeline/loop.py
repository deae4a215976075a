"""The training loop: the loop of `spacy train`, with a teacher."""

from __future__ import annotations

import random
import shutil
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from timeit import default_timer as timer
from typing import Any

import srsly
from spacy.training.loop import (
    DIR_MODEL_BEST,
    DIR_MODEL_LAST,
    create_before_to_disk_callback,
    subdivide_batch,
    update_meta,
)
from thinc.api import constant, fix_random_seed

from spacy_distil.distillation.pipeline.checkpoint import STUDENT, Checkpoints
from spacy_distil.distillation.pipeline.config import PipelineDistilConfig
from spacy_distil.distillation.pipeline.corpus import TransferExample, TransferSet
from spacy_distil.distillation.pipeline.distiller import PipelineDistiller, trainable_pipes
from spacy_distil.distillation.pipeline.noise import with_noise
from spacy_distil.errors import CorpusError, WriteError
from spacy_distil.runs.files import atomic_directory
from spacy_distil.runs.interruption import Interruption, RunInterrupted, explain_stop


@dataclass
class Progress:
    """How far a run is. All values can be saved as JSON.

    results: (score, step) of each evaluation.
    step: the last step taken; -1 before the first, which is 0.
    words: tokens seen.
    seconds: time of all processes of the run together.
    losses: by pipe, since the last evaluation.
    """

    results: list[tuple[float, int]] = field(default_factory=list)
    step: int = -1
    words: int = 0
    seconds: float = 0.0
    losses: dict[str, float] = field(default_factory=dict)

    @property
    def is_evaluated(self) -> bool:
        """Whether the last step has been evaluated."""
        return bool(self.results) and self.results[-1][1] == self.step

    def best(self) -> tuple[float, int]:
        """Return score and step of the best evaluation, the last of equals as in `spacy train`."""
        return max(self.results)

    def waited(self, start: int) -> int:
        """Count the steps since the first of the best evaluations.

        start: the first step that counts, which begins the last stage. No other stage ends early.
        """
        if self.step < start or not self.results:
            return 0
        best = max(score for score, _ in self.results)
        return self.step - max(start, next(i for score, i in self.results if score == best))


class TrainingLoop:
    """Trains a student from its newest checkpoint, or from the start, to the end.

    distiller: the student and everything that it learns from.
    transfer_set: the documents.
    config: settings of the distillation.
    training: [training], resolved.
    evaluate: returns the main score on the development documents, and all scores.
    output: receives `model-best` and `model-last`, and has the `checkpoints`.
    strings: the strings that the student is saved with, beside its labels.
    until: pause after the evaluation at this step, or the first one after it. None: do not pause.
    """

    def __init__(
        self,
        distiller: PipelineDistiller,
        transfer_set: TransferSet,
        config: PipelineDistilConfig,
        training: Mapping[str, Any],
        evaluate: Callable[[], tuple[float, dict[str, Any]]],
        output: Path,
        *,
        strings: frozenset[str],
        until: int | None = None,
    ) -> None:
        self.distiller = distiller
        self.strings, self.until = strings, until
        self.nlp = distiller.nlp
        self.transfer_set = transfer_set
        self.config = config
        self.training = training
        self.evaluate = evaluate
        self.best_path, self.last_path = output / DIR_MODEL_BEST, output / DIR_MODEL_LAST
        self.checkpoints = Checkpoints(output / "checkpoints")
        self.optimizer = training["optimizer"]
        self.seed = training["seed"] or 0
        self.progress = Progress(losses=self._no_losses())
        dropout = training["dropout"]
        self._dropouts: Any = constant(dropout) if isinstance(dropout, (int, float)) else dropout
        self._before_to_disk = create_before_to_disk_callback(training["before_to_disk"])
        self._began = timer()

    @property
    def is_paused(self) -> bool:
        """Whether the run stops here, to be resumed later."""
        progress = self.progress
        return (
            self.until is not None
            and progress.is_evaluated
            and self.until <= progress.step < self.config.max_steps
        )

    def run(self) -> Progress:
        """Train, and save the student after each evaluation and at the end.

        RETURNS: the progress at the end, or at the pause.
        Raises `RunInterrupted` after SIGTERM.
        """
        self._restore()
        self._began = timer() - self.progress.seconds  # as if the run had never stopped
        with self.nlp.select_pipes(disable=self.distiller.frozen):
            log, finish_log = self.training["logger"](self.nlp, sys.stdout, sys.stderr)
        try:
            with Interruption() as interruption:
                for step, epoch, batch in () if self.is_paused else self._batches():
                    if step > self.progress.step:
                        if self._is_out_of_patience():
                            break
                        self._take_step(step, epoch, batch)
                    # Before the evaluation, which may take longer than SIGTERM leaves time for.
                    if interruption.received and step < self.config.max_steps:
                        self._save()
                        raise RunInterrupted.after(step, self.config.max_steps)
                    if self._is_due(step):
                        log(self._evaluate(epoch))
                    else:
                        log(None)
                    if self.is_paused:
                        break
        except BaseException as error:
            self._explain_stop(error)
            raise
        finally:
            finish_log()
        if self.is_paused:
            return self.progress
        with atomic_directory(self.last_path) as unfinished:
            self._save_student(unfinished)
        return self.progress

    def _restore(self) -> None:
        """Load the newest checkpoint, if there is one."""
        path = self.checkpoints.newest()
        if path is None:
            return
        hidden = self.distiller.hidden
        step, state = self.checkpoints.load(path, self.nlp, self.optimizer, hidden)
        state["results"] = [(score, i) for score, i in state["results"]]
        self.progress = Progress(**state)
        self._hand_out(path)  # it may have been killed before it did so
        for _ in range(step + 1):  # schedules are generators, which cannot jump to a step
            self.optimizer.step_schedules()
            next(self._dropouts)

    def _batches(self) -> Iterator[tuple[int, int, Sequence[TransferExample]]]:
        """Yield step, epoch and batch of the steps to take.

        The first is the last one of the checkpoint if that was written before its evaluation.
        """
        is_complete = not self._is_due(self.progress.step) or self.progress.is_evaluated
        start = max(0, self.progress.step + is_complete)
        batches = make_batches(self.transfer_set, self.config, self.training["batcher"], self.seed)
        for step, (epoch, batch) in enumerate(batches):
            if step >= start:
                yield step, epoch, batch

    def _is_due(self, step: int) -> bool:
        """Whether an evaluation follows a step."""
        return step % self.training["eval_frequency"] == 0

    def _is_out_of_patience(self) -> bool:
        patience = self.training["patience"]
        return bool(patience) and self.progress.waited(self.config.stages[-1].start) >= patience

    def _take_step(self, step: int, epoch: int, batch: Sequence[TransferExample]) -> None:
        if self.training["before_update"]:
            self.training["before_update"](self.nlp, {"step": step, "epoch": epoch})
        # A run that is resumed at any step draws the same random numbers as one that never stopped.
        fix_random_seed((self.seed * 1_000_003 + step) % 2**32)
        stage, drop = self.config.stage_at(step), next(self._dropouts)
        rng = random.Random(f"{self.seed} {step} noise")
        batch = [with_noise(each, self.config.noise, rng) for each in batch]
        for part in subdivide_batch(batch, self.training["accumulate_gradient"]):
            self.distiller.update(part, stage, drop=drop, losses=self.progress.losses)
        self.distiller.finish_update(self.optimizer)
        self.optimizer.step_schedules()
        self.progress.step = step
        self.progress.words += sum(map(len, batch))
        self.progress.seconds = timer() - self._began

    def _evaluate(self, epoch: int) -> dict[str, Any]:
        """Score the student, and save it with a checkpoint.

        RETURNS: the information that loggers of `spacy train` expect.
        """
        progress = self.progress
        with self.nlp.use_params(self.optimizer.averages or {}):
            score, scores = self.evaluate()
        progress.results.append((score, progress.step))
        losses, progress.losses = progress.losses, self._no_losses()
        info = {
            "epoch": epoch,
            "step": progress.step,
            "score": score,
            "other_scores": scores,
            "losses": losses,
            "checkpoints": progress.results,
            "seconds": int(progress.seconds),
            "words": progress.words,
            "output_path": str(self.last_path),
        }
        with self.nlp.select_pipes(disable=self.distiller.frozen):
            update_meta(self.training, self.nlp, info)
        self._hand_out(self._save())
        return info

    def _save(self) -> Path:
        """Save a checkpoint. RETURNS: its directory."""
        return self.checkpoints.save(
            self.progress.step,
            self.nlp,
            self.optimizer,
            self.distiller.hidden,
            asdict(self.progress),
            self._save_student,
        )

    def _save_student(self, directory: Path) -> None:
        with self.nlp.use_params(self.optimizer.averages or {}):
            nlp = self._before_to_disk(self.nlp)
            nlp.to_disk(directory)
        labels = {label for pipe_labels in nlp.pipe_labels.values() for label in pipe_labels}
        _keep_strings(directory / "vocab" / "strings.json", self.strings | labels)

    def _hand_out(self, checkpoint: Path) -> None:
        """Copy the student of a checkpoint to where users look for it, if it was evaluated.

        The checkpoint is complete before the first copy begins, so a run that is killed between
        them makes them again.
        """
        if not self.progress.is_evaluated:
            return
        targets = [self.last_path]
        if self.progress.best()[1] == self.progress.step:
            targets.append(self.best_path)
        for target in targets:
            with atomic_directory(target) as unfinished:
                shutil.copytree(checkpoint / STUDENT, unfinished, dirs_exist_ok=True)

    def _explain_stop(self, error: BaseException) -> None:
        """Tell the user how to go on after an error, if there is a checkpoint."""
        if not isinstance(error, (RunInterrupted, WriteError)):
            explain_stop(error, self.progress.step, self.checkpoints.newest_step())

    def _no_losses(self) -> dict[str, float]:
        return {name: 0.0 for name, _ in trainable_pipes(self.nlp)}


def make_batches(
    transfer_set: TransferSet,
    config: PipelineDistilConfig,
    batcher: Callable[[Iterable[Any]], Iterable[Sequence[TransferExample]]],
    seed: int,
) -> Iterator[tuple[int, Sequence[TransferExample]]]:
    """Yield the batches of all steps, each with the number of its pass over the documents.

    The batches depend on the seed alone, unless the batcher itself is random. A stage that learns
    from annotation alone passes over the annotated documents. As in `spacy train`, there is one
    step more than `max_steps`.
    """
    step = epoch = 0
    while step <= config.max_steps:
        stage = config.stage_at(step)
        order = list(transfer_set.all if stage.uses_text else transfer_set.gold)
        random.Random(f"{seed} {epoch}").shuffle(order)
        first = step
        for batch in batcher(order):
            if step > config.max_steps or config.stage_at(step) is not stage:
                break
            yield epoch, batch
            step += 1
        if step == first and config.stage_at(step) is stage:
            raise CorpusError(
                "[training.batcher] makes no batch of the documents. With "
                "discard_oversize = true, it drops all documents that are longer than a batch."
            )
        epoch += 1


def _keep_strings(path: Path, kept: Collection[str]) -> None:
    """Leave strings out of a saved pipeline.

    spaCy's vocab keeps each word of each text that it has seen. The words of a million words of
    text are larger than a small student's weights, and may be private.

    path: of `strings.json`.
    """
    srsly.write_json(path, [string for string in srsly.read_json(path) if string in kept])
