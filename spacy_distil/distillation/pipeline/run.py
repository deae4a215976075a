"""A pipeline distillation, from its config to the saved student."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from confection import ConfigValidationError
from spacy.cli._util import setup_gpu
from spacy.language import Language
from spacy.tokens import Doc
from spacy.training import Example
from spacy.training.loop import DIR_MODEL_BEST, DIR_MODEL_LAST, create_evaluation_callback
from wasabi import msg

from spacy_distil.distillation.pipeline.cache import DECISIONS, DEVELOPMENT
from spacy_distil.distillation.pipeline.calls import TeacherCalls
from spacy_distil.distillation.pipeline.checkpoint import Checkpoints
from spacy_distil.distillation.pipeline.config import (
    FREE_ON_RESUME,
    load_config,
    resolve_training,
)
from spacy_distil.distillation.pipeline.corpus import (
    Reader,
    TransferSet,
    by_language,
    check_paths,
    fingerprint_annotation,
    language_of,
    original_of,
    read_annotated,
    read_transfer_set,
    resolve_corpora,
)
from spacy_distil.distillation.pipeline.decisions import (
    Decisions,
    agreement_examples,
    record_decisions,
    silver_examples,
)
from spacy_distil.distillation.pipeline.distiller import (
    PipelineDistiller,
    cache_directory,
    make_distiller,
    make_vectors,
)
from spacy_distil.distillation.pipeline.evaluation import check_development
from spacy_distil.distillation.pipeline.fingerprints import fingerprint_docs, fingerprint_pipeline
from spacy_distil.distillation.pipeline.heads import Pairing
from spacy_distil.distillation.pipeline.heads.pairs import others_before_models
from spacy_distil.distillation.pipeline.labels import tree_strings
from spacy_distil.distillation.pipeline.language import (
    compare_tokenizers,
    is_foreign,
    warn_of_differences,
    warn_of_foreign_text,
    warn_of_unknown_languages,
)
from spacy_distil.distillation.pipeline.loop import Progress, TrainingLoop
from spacy_distil.distillation.pipeline.student import check_gold_labels, make_student
from spacy_distil.distillation.pipeline.vectors import ACCURACY, COSINE, DocVectors
from spacy_distil.errors import ConfigError, CorpusError, DistilError
from spacy_distil.hugging_face import load_teacher
from spacy_distil.pipelines import loading_problem
from spacy_distil.runs.directory import RunDirectory
from spacy_distil.text.languages import language_name

FEW_HELD_OUT = 20  # the user is told


@dataclass(frozen=True)
class DistilledPipeline:
    """A run that has finished, or pauses.

    path: the student that scored best on the development documents.
    step: the step at which it did. steps: of the whole run, or up to now.
    score: weighted as [training.score_weights] says.
    """

    path: Path
    step: int
    steps: int
    score: float


class PipelineRun:
    """A run of `distil_pipeline`, which documents the arguments.

    inputs: fingerprints of everything that the run reads, by name.
    student, start: see `make_student`.
    training: [training] of the student, resolved.
    readers: of the training, the development and the unlabelled documents. None for missing ones.
    development: the documents that the student is scored on.
    decisions: of teachers of no known kind, if the student learns from any.
    vectors: scores the student by its doc vectors, if it learns them.
    """

    inputs: dict[str, str]
    student: Language
    start: dict[str, str]
    training: dict[str, Any]
    readers: tuple[Reader | None, Reader | None, Reader | None]
    development: list[Example]
    vectors: DocVectors | None

    def __init__(
        self,
        teacher: Language | str | Path,
        config: str | Path | Mapping[str, Any],
        output: Path,
        *,
        overrides: Mapping[str, Any] | None,
        gpu_id: int,
        resume: bool,
        force: bool,
        until: int | None = None,
    ) -> None:
        if until is not None and until < 0:
            raise ConfigError(f"until = {until}: expected the number of a step, 0 or more.")
        self.until = until
        self.settings = load_config(config, overrides)
        self.output, self.gpu_id = output, gpu_id
        self.resume, self.force = resume, force
        self.directory = RunDirectory(
            output,
            kind="pipeline",
            own=frozenset({"start", DIR_MODEL_BEST, DIR_MODEL_LAST}),
            # The cache compares its inputs itself.
            kept=frozenset({"cache"}),
            # The student is made before the documents are compared.
            early=frozenset({"labels", "start"}),
            free=FREE_ON_RESUME,
            finished=frozenset({"step", "steps", "score"}),
        )
        self.checkpoints = Checkpoints(output / "checkpoints")
        self.directory.check(resume=resume, force=force)
        check_paths(self.settings.spacy, corpus=self.settings.corpus)
        setup_gpu(gpu_id)
        if not isinstance(teacher, Language):
            # A model of transformers becomes a pipeline in the student's language.
            lang = self.settings.spacy.interpolate().get("nlp", {}).get("lang")
            teacher = load_teacher(str(teacher), lang)
        self.teacher = teacher
        self.inputs = {"the teacher": fingerprint_pipeline(self.teacher)}
        self.calls = TeacherCalls(self.settings.teacher)
        self.decisions: Decisions | None = None
        self.pairing = Pairing({}, [], {}, [])
        self.words: frozenset[str] = frozenset()  # that reading the documents early has added

    def make_start(self, scratch: Path) -> Language:
        """Make the student before its first step. It costs what the trained one will.

        scratch: directory for what it starts from. Nothing is written to the run's own.
        """
        self._make_student(scratch)
        return self.student

    def read_development(self, scratch: Path) -> tuple[list[Example], dict[str, float | None]]:
        """Read the documents that the student is scored on, and the weights of its scores.

        scratch: as in `make_start`.
        """
        self._make_student(scratch)
        self._read_documents()
        return self.development, self.training["score_weights"]

    def run(self) -> DistilledPipeline:
        """Distil the student, or finish an earlier run that did not."""
        with (
            self.directory.explain_write_errors(self.checkpoints.newest_step),
            self.directory.restoring(),
        ):
            return self._run()

    def _run(self) -> DistilledPipeline:
        earlier = self._find_earlier()
        if earlier is not None and earlier.get("finished"):
            # Its documents may have changed. Nothing is written before that is known.
            with TemporaryDirectory() as directory:
                self._make_student(Path(directory))
                self._read_documents()
            earlier = self._find_earlier()
        self.directory.prepare(self.settings.spacy, earlier)
        if earlier is not None and earlier.get("finished"):
            self._announce(earlier)
            return self._distilled(earlier)
        self._make_student(self.output)
        transfer_set = self._read_documents()
        if earlier is not None:
            # Settings and teacher are the same. Now the documents are known, too.
            earlier = self._find_earlier()
        self._announce(earlier)
        distiller = self._make_distiller(transfer_set)
        self.directory.begin(self.settings.spacy, {"inputs": self.inputs}, earlier)
        loop = self._train(distiller, transfer_set)
        if loop.is_paused:
            return self._pause(loop)
        return self._finish(loop.progress, distiller)

    def _find_earlier(self) -> dict[str, Any] | None:
        """Return the results of the run to resume, or None if a new one starts."""
        return self.directory.find_earlier(
            self.settings.spacy, self.inputs, resume=self.resume, force=self.force
        )

    def _make_student(self, output: Path) -> None:
        """Make the student and the readers of its documents. output: see `make_student`."""
        try:
            self.student, self.start = make_student(
                self.settings, self.teacher, output, self.gpu_id, self._read_initial
            )
            # Reading texts adds their words, which no pipe needs.
            strings = frozenset(self.student.vocab.strings) - self.words
            self.strings = strings | tree_strings(self.student)
            self.training = resolve_training(self.student.config)
            self.readers = resolve_corpora(self.student, self.settings)
        except ConfigValidationError as error:
            raise ConfigError(str(error).strip()) from error
        except DistilError:
            raise
        except (ImportError, KeyError, OSError, ValueError) as error:
            message = str(error).strip("\"'")
            if not message.startswith("[E"):  # not spaCy's own
                raise
            problem = loading_problem("The student's config", type(error).__name__, message)
            raise ConfigError(problem) from error

    def _read_initial(self, student: Language, pairing: Pairing) -> list[Example]:
        """Read the documents that the student is initialized with.

        If pipes learn the decisions of a teacher, it makes them now: they show the labels.
        """
        self.pairing = pairing
        train, dev, text = resolve_corpora(student, self.settings)
        if train is not None and not pairing.decisions:
            return read_annotated(student, train, which="training", path="train")
        before = frozenset(student.vocab.strings)
        held_out = self.settings.held_out if dev is None else 0
        transfer_set = read_transfer_set(student, train, text, held_out=held_out)
        gold = [each.example for each in transfer_set.gold]
        if pairing.decisions:
            pairs = {name: pairing.sources[name] for name in pairing.decisions}
            sources = [*pairs.values(), *others_before_models(self.teacher, pairing)]
            self.decisions = self._record(DECISIONS, transfer_set.docs, sources)
            given = student.config.interpolate()["initialize"]["components"]
            new = {n: s for n, s in pairs.items() if given.get(n, {}).get("labels") is None}
            docs, pipes = transfer_set.docs, self.settings.pipes
            gold += silver_examples(student, docs, self.decisions, new, pipes)
        examples = gold or [each.example for each in transfer_set.all]
        self.words = frozenset(student.vocab.strings) - before
        return examples

    def _record(self, name: str, docs: list[Doc], sources: Iterable[str]) -> Decisions:
        """Record docs after pipes of the teacher, in a cache inside the cache."""
        return record_decisions(
            self.teacher,
            docs,
            list(dict.fromkeys(sources)),
            self.calls,
            cache_directory(self.settings, self.output) / name,
            fingerprint={
                "the teacher": self.inputs["the teacher"],
                "the documents": fingerprint_docs(docs),
            },
            force=self.force,
        )

    def _read_documents(self) -> TransferSet:
        """Read and check the documents, and add their fingerprints to the inputs."""
        train, dev, text = self.readers
        held_out = self.settings.held_out if dev is None else 0
        transfer_set = read_transfer_set(self.student, train, text, held_out=held_out)
        docs = transfer_set.docs
        if train is None:
            self._check_stages()
            msg.info("No training corpus: the student learns what the teacher says about text")
        n_gold, lang = transfer_set.n_gold, str(self.student.lang)
        if not is_foreign(lang, self.teacher):  # its tokenizer is meant to differ
            warn_of_differences(compare_tokenizers(self.student, self.teacher, docs))
        # Their start is enough, so not all texts are made at once.
        warn_of_foreign_text((doc.text for doc in docs[:n_gold]), "The training corpus", lang)
        for code, part in by_language(docs[n_gold:], lang).items():
            name = f"The text without annotation{f' ({code})' if code != lang else ''}"
            warn_of_foreign_text((doc.text for doc in part), name, code)
        # Of a translation, the teacher reads the original if only vectors are learned.
        alone = all(stage.is_vectors for stage in self.settings.stages)
        read = (doc for doc in docs if not (alone and original_of(doc)))
        warn_of_unknown_languages(self.teacher, by_language(read, lang))
        gold = [each.example for each in transfer_set.gold]
        check_gold_labels(self.student, gold, frozen=self.training["frozen_components"])
        self.inputs["the documents"] = fingerprint_docs(docs)
        self.inputs["their annotation"] = fingerprint_annotation(gold)
        if (
            self.decisions is not None
            and self.decisions.fingerprint != self.inputs["the documents"]
        ):
            raise CorpusError(
                "The documents are not the same when they are read twice, so what the teacher said "
                "about them cannot be learned. Leave out augmenters of the training corpus, and "
                'set distillation.student.tokenizer = "teacher".'
            )
        if dev is None:
            self.development = self._annotate(transfer_set.held_out)
        else:
            self.development = read_annotated(self.student, dev, which="development", path="dev")
        self._prepare_vectors()
        check_development(self.student, self.development, self.training["score_weights"])
        self.inputs["the development documents"] = fingerprint_annotation(self.development)
        return transfer_set

    def _check_stages(self) -> None:
        """Raise ConfigError for a stage that learns from annotation, of which there is none."""
        for stage in self.settings.stages:
            if not stage.uses_text:
                raise ConfigError(
                    f"[distillation.stages.{stage.name}] learns from annotation alone, but there "
                    "is no training corpus. Give one in [paths] train, or set its share to 0."
                )

    def _annotate(self, docs: list[Doc]) -> list[Example]:
        """Let the teacher annotate the documents that the student is scored on."""
        sources, pipes = self.pairing.sources, self.settings.pipes
        annotated = self._record(DEVELOPMENT, docs, sources.values())
        msg.info(
            f"Scores are agreement with the teacher, on {len(docs):,} documents that are held out"
        )
        if len(docs) < FEW_HELD_OUT:
            msg.warn(
                "So few documents tell little about a student. Give more text, annotated documents "
                "in [paths] dev, or distillation.held_out a smaller number than "
                f"{self.settings.held_out}"
            )
        return agreement_examples(self.student, docs, annotated, sources, pipes)

    def _prepare_vectors(self) -> None:
        """If doc vectors are learned, let the student be scored by them."""
        frozen = self.training["frozen_components"]
        self.vectors = make_vectors(self.student, self.teacher, self.settings, frozen)
        if self.vectors is None:
            return
        self.vectors.prepare(self.development)
        weights = self.training["score_weights"]
        for score in (COSINE, ACCURACY):
            weights.setdefault(score, 0.0)
        if not any(weights.values()):
            msg.info(f"The best student is chosen by {COSINE}: no score has a weight")
            weights[COSINE] = 1.0
        self.student.config["training"]["score_weights"] = dict(weights)  # for the logger

    def _announce(self, earlier: Mapping[str, Any] | None) -> None:
        """Tell the user how the run begins."""
        has_checkpoint = self.checkpoints.newest() is not None
        if self.directory.announce(earlier, resume=self.resume, has_checkpoint=has_checkpoint):
            self.checkpoints.remove()  # the run may have been killed just before it did so

    def _make_distiller(self, transfer_set: TransferSet) -> PipelineDistiller:
        for name, start in self.start.items():
            msg.info(f"{name} starts from {start}")
        return make_distiller(
            self.student,
            self.teacher,
            self.settings,
            self.training,
            transfer_set,
            self.inputs,
            self.output,
            decisions=self.decisions,
            force=self.force,
        )

    def _train(self, distiller: PipelineDistiller, transfer_set: TransferSet) -> TrainingLoop:
        _, dev, _ = self.readers
        weights = self.training["score_weights"]
        if dev is None or self.vectors is not None:  # these have what the teacher says
            evaluate = create_evaluation_callback(
                self.student, lambda nlp: self.development, weights
            )
        else:
            evaluate = create_evaluation_callback(self.student, dev, weights)
        loop = TrainingLoop(
            distiller,
            transfer_set,
            self.settings,
            self.training,
            evaluate,
            self.output,
            strings=self.strings,
            until=self.until,
        )
        loop.run()
        return loop

    def _pause(self, loop: TrainingLoop) -> DistilledPipeline:
        """Leave the run as it is, for a later call to go on with."""
        score, step = loop.progress.best()
        msg.info(
            f"Paused after step {loop.progress.step:,} of {self.settings.max_steps:,}. Go on with "
            "--resume"
        )
        return DistilledPipeline(loop.best_path, step, loop.progress.step, score)

    def _finish(self, progress: Progress, distiller: PipelineDistiller) -> DistilledPipeline:
        """Write the results and remove the checkpoints."""
        score, step = progress.best()
        languages = self._score_languages()
        results = {
            "finished": True,
            "inputs": self.inputs,
            "start": self.start,
            "steps": progress.step,
            "step": step,
            "score": score,
            "languages": languages,
            "improved": step > 0,
            "words": progress.words,
            "seconds": round(progress.seconds, 1),
            "cache_bytes": distiller.cache.n_bytes if distiller.cache is not None else 0,
        }
        self.directory.write_results(results)
        self.checkpoints.remove()
        self._tell_languages(languages)
        msg.good(f"Saved the best student, of step {step}, to {self.output / DIR_MODEL_BEST}")
        if step == 0:
            _warn_of_no_gain(progress)
        return self._distilled(results)

    def _score_languages(self) -> dict[str, dict[str, float]]:
        """Score the best student on the development documents of each language.

        RETURNS: scores that have a weight, by language, and the number of documents. Nothing if the
            settings do not say the languages of documents.
        """
        examples = defaultdict(list)
        for example in self.development:
            if (lang := language_of(example.predicted)) is not None:
                examples[lang].append(example)
        if not examples:
            return {}
        # Without the vocab, which knows the words of the documents.
        self.student.from_disk(self.output / DIR_MODEL_BEST, exclude=["vocab", "tokenizer"])
        weights = self.training["score_weights"]
        shown = [score for score, weight in weights.items() if weight is not None]
        scores = {}
        for lang, own in examples.items():
            found = self.student.evaluate(own)
            numbers = {each: found[each] for each in shown if found.get(each) is not None}
            scores[lang] = {"documents": len(own), **numbers}
        return scores

    @staticmethod
    def _tell_languages(scores: Mapping[str, Mapping[str, float]]) -> None:
        """Show a table of scores by language."""
        if not scores:
            return
        columns = list(dict.fromkeys(score for own in scores.values() for score in own))
        rows = []
        for lang, own in scores.items():
            numbers = [
                f"{own.get(each, 0.0):.4f}" if each != "documents" else f"{own[each]:,}"
                for each in columns
            ]
            rows.append((language_name(lang), *numbers))
        msg.table(rows, header=("", *columns), divider=True, aligns=("l", *"r" * len(columns)))

    def _distilled(self, results: Mapping[str, Any]) -> DistilledPipeline:
        return DistilledPipeline(
            self.output / DIR_MODEL_BEST, results["step"], results["steps"], results["score"]
        )


def _warn_of_no_gain(progress: Progress) -> None:
    """Tell the user in yellow that the best student is the one before all steps but the first."""
    if len(progress.results) == 1:
        msg.warn(
            f"model-best is the student of step 0: none of the {progress.step} steps after it was "
            "evaluated. Set a smaller training.eval_frequency"
        )
        return
    first, last = progress.results[0][0], progress.results[-1][0]
    msg.warn(
        "The best student is the one of step 0: teaching only made it worse",
        f"The score was {first:.4f} at step 0, and {last:.4f} at the last evaluation. Likely "
        "reasons: the documents are unlike the development documents, the learning rate is too "
        "high, the steps are too few, or the teacher is no better than the student.",
    )
