"""The training loop: the loop of `spacy train`, with a teacher."""

from __future__ import annotations

import random
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from timeit import default_timer as timer
from typing import Any

from spacy.training.loop import (
    DIR_MODEL_BEST,
    DIR_MODEL_LAST,
    create_before_to_disk_callback,
    subdivide_batch,
    update_meta,
)
from thinc.api import constant, fix_random_seed
from wasabi import msg

from spacy_distil.distillation.pipeline.checkpoint import Checkpoints
from spacy_distil.distillation.pipeline.config import PipelineDistilConfig
from spacy_distil.distillation.pipeline.corpus import TransferExample, TransferSet
from spacy_distil.distillation.pipeline.distiller import PipelineDistiller, trainable_pipes
from spacy_distil.errors import CorpusError
from spacy_distil.runs.files import atomic_directory


@dataclass
class Progress:
    """How far a run is. All values can be saved as JSON.

    results: (score, step) of each evaluation.
    step: the last step taken.
    words: tokens seen.
    seconds: time of all processes of the run together.
    """

    results: list[tuple[float, int]] = field(default_factory=list)
    step: int = 0
    words: int = 0
    seconds: float = 0.0

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
    """

    def __init__(
        self,
        distiller: PipelineDistiller,
        transfer_set: TransferSet,
        config: PipelineDistilConfig,
        training: Mapping[str, Any],
        evaluate: Callable[[], tuple[float, dict[str, Any]]],
        output: Path,
    ) -> None:
        self.distiller = distiller
        self.nlp = distiller.nlp
        self.transfer_set = transfer_set
        self.config = config
        self.training = training
        self.evaluate = evaluate
        self.best_path, self.last_path = output / DIR_MODEL_BEST, output / DIR_MODEL_LAST
        self.checkpoints = Checkpoints(output / "checkpoints")
        self.optimizer = training["optimizer"]
        self.seed = training["seed"] or 0
        self.progress = Progress()
        dropout = training["dropout"]
        self._dropouts: Any = constant(dropout) if isinstance(dropout, (int, float)) else dropout
        self._before_to_disk = create_before_to_disk_callback(training["before_to_disk"])
        self._losses = self._no_losses()
        self._began = timer()

    def run(self) -> Progress:
        """Train, and save the student after each evaluation and at the end.

        RETURNS: the progress at the end.
        """
        start = self._restore()
        self._began = timer() - self.progress.seconds  # as if the run had never stopped
        with self.nlp.select_pipes(disable=self.distiller.frozen):
            log, finish_log = self.training["logger"](self.nlp, sys.stdout, sys.stderr)
        try:
            for step, epoch, batch in self._batches(start):
                if self._is_out_of_patience():
                    break
                self._take_step(step, epoch, batch)
                if step % self.training["eval_frequency"]:
                    log(None)
                    continue
                log(self._evaluate(step, epoch))
                self._losses = self._no_losses()
                self._reseed(step + 1)
        except BaseException as error:
            self._explain_stop(error)
            raise
        finally:
            finish_log()
        self._save_last()
        return self.progress

    def _restore(self) -> int:
        """Load the newest checkpoint, if there is one. RETURNS: the first step to take."""
        path = self.checkpoints.newest()
        if path is None:
            return 0
        hidden = self.distiller.hidden
        step, state = self.checkpoints.load(path, self.nlp, self.optimizer, hidden)
        state["results"] = [(score, i) for score, i in state["results"]]
        self.progress = Progress(**state)
        if self.progress.best()[1] == step:  # it may have been killed before it made the copy
            _copy(self.last_path, self.best_path)
        for _ in range(step + 1):  # schedules are generators, which cannot jump to a step
            self.optimizer.step_schedules()
            next(self._dropouts)
        return step + 1

    def _batches(self, start: int) -> Iterator[tuple[int, int, Sequence[TransferExample]]]:
        """Yield step, epoch and batch from a step on."""
        batches = make_batches(self.transfer_set, self.config, self.training["batcher"], self.seed)
        for step, (epoch, batch) in enumerate(batches):
            if step == start:
                self._reseed(step)
            if step >= start:
                yield step, epoch, batch

    def _is_out_of_patience(self) -> bool:
        patience = self.training["patience"]
        return bool(patience) and self.progress.waited(self.config.stages[-1].start) >= patience

    def _take_step(self, step: int, epoch: int, batch: Sequence[TransferExample]) -> None:
        if self.training["before_update"]:
            self.training["before_update"](self.nlp, {"step": step, "epoch": epoch})
        stage, drop = self.config.stage_at(step), next(self._dropouts)
        for part in subdivide_batch(batch, self.training["accumulate_gradient"]):
            self.distiller.update(part, stage, drop=drop, losses=self._losses)
        self.distiller.finish_update(self.optimizer)
        self.optimizer.step_schedules()
        self.progress.step = step
        self.progress.words += sum(map(len, batch))
        self.progress.seconds = timer() - self._began

    def _evaluate(self, step: int, epoch: int) -> dict[str, Any]:
        """Score the student, and save it with a checkpoint.

        RETURNS: the information that loggers of `spacy train` expect.
        """
        with self.nlp.use_params(self.optimizer.averages or {}):
            score, scores = self.evaluate()
        self.progress.results.append((score, step))
        info = {
            "epoch": epoch,
            "step": step,
            "score": score,
            "other_scores": scores,
            "losses": self._losses,
            "checkpoints": self.progress.results,
            "seconds": int(self.progress.seconds),
            "words": self.progress.words,
            "output_path": str(self.last_path),
        }
        with self.nlp.select_pipes(disable=self.distiller.frozen):
            update_meta(self.training, self.nlp, info)
        self._save_last()
        state = asdict(self.progress)
        self.checkpoints.save(step, self.nlp, self.optimizer, self.distiller.hidden, state)
        if self.progress.best()[1] == step:
            _copy(self.last_path, self.best_path)
        return info

    def _save_last(self) -> None:
        with self.nlp.use_params(self.optimizer.averages or {}):
            self._before_to_disk(self.nlp).to_disk(self.last_path)

    def _explain_stop(self, error: BaseException) -> None:
        """Tell the user how to go on after an error, if there is a checkpoint."""
        if self.progress.results:
            msg.warn(
                f"Stopped at step {self.progress.step} by {error!r}. Go on from step "
                f"{self.progress.results[-1][1]}, the last evaluation, with --resume"
            )

    def _no_losses(self) -> dict[str, float]:
        return {name: 0.0 for name, _ in trainable_pipes(self.nlp)}

    def _reseed(self, step: int) -> None:
        """Restart all random numbers, so a run that resumes at a step goes on as without a stop."""
        fix_random_seed((self.seed * 1_000_003 + step) % 2**32)


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


def _copy(source: Path, target: Path) -> None:
    """Replace a directory by a copy of another."""
    with atomic_directory(target) as unfinished:
        shutil.copytree(source, unfinished, dirs_exist_ok=True)
