"""Find the best student that fits a budget, from the teacher to the quantized pipeline."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import replace
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any, Literal, cast

from confection import Config
from spacy.language import Language
from spacy.tokens import Doc
from spacy.training import Example
from wasabi import msg

from spacy_distil.component.pipe import DistilTransformerPipe
from spacy_distil.component.shim import get_encoder
from spacy_distil.distillation.pipeline.config import SHAPE_SETTINGS, load_config
from spacy_distil.distillation.pipeline.evaluation import perfect_score, weighted_score
from spacy_distil.distillation.pipeline.fingerprints import fingerprint_pipeline
from spacy_distil.distillation.pipeline.run import DistilledPipeline, PipelineRun
from spacy_distil.distillation.pipeline.student import find_obstacle
from spacy_distil.engines.onnx import count_cores
from spacy_distil.errors import ConfigError
from spacy_distil.export.quantize import quantize
from spacy_distil.fitting import halving
from spacy_distil.fitting.candidates import CANDIDATES, Candidate, Start, encoder_of, propose
from spacy_distil.fitting.costs import (
    Costs,
    distance,
    find_all,
    find_misses,
    measure_costs,
    order_key,
)
from spacy_distil.fitting.family import write_family
from spacy_distil.fitting.report import write_report
from spacy_distil.fitting.results import Fit, Student
from spacy_distil.fitting.settings import SECTION, FitSettings
from spacy_distil.hugging_face import load_teacher
from spacy_distil.hugging_face.description import read_model_config
from spacy_distil.pipelines import count_bytes, pair_pipes
from spacy_distil.report.machine import describe_machine
from spacy_distil.runs.directory import RunDirectory
from spacy_distil.runs.files import atomic_directory
from spacy_distil.runs.settings import read_config, read_section
from spacy_distil.students.shapes import shape_of
from spacy_distil.text.documents import read_documents

BEST, FAMILY, CACHE = "best", "family", "cache"
# Settings that costs depend on. A search goes on with other values of the rest.
MEASURING = frozenset({"cores", "texts", "words", "batch_size"})
# Beginning of the names of directories for pipelines that are not kept.
_SCRATCH = ".scratch-"
# Fewer words take so little time that other work of the machine shows.
_FEW_WORDS = 2000
# Documents on which a quantized start is compared with the original. It has learned nothing yet.
_CHECKED = 8


class FitRun:
    """A run of `fit`, which documents the arguments."""

    def __init__(
        self,
        teacher: str | Path,
        config: str | Path | Mapping[str, Any],
        output: Path,
        *,
        overrides: Mapping[str, Any] | None,
        gpu_id: int,
        code: str | None,
        resume: bool,
        force: bool,
        command: str,
        log: Callable[[str], Any],
    ) -> None:
        self.config, interpolated = read_config(
            config, overrides, kind="pipeline", complete=_add_section
        )
        self.settings = read_section(SECTION, FitSettings, interpolated[SECTION])
        if not self.settings.limits and self.settings.min_retention is None:
            raise ConfigError(
                "There is no budget: set one limit or more, such as --words-per-second 20000, "
                "--size-mb 15 or --min-retention 0.99."
            )
        timed = self.settings.latency_ms is not None or self.settings.minimize == "latency_ms"
        if self.settings.percentile != 50 and not timed:
            raise ConfigError(
                f"percentile = {self.settings.percentile} is of the latency, which no budget "
                "limits. Add --latency-ms, or leave it out."
            )
        in_pairs = pair_pipes(interpolated)
        costs = {*self.settings.limits}
        if self.settings.min_retention is not None:
            costs.add(self.settings.minimize)
        if in_pairs and costs - {"size_mb"}:
            raise ConfigError(
                f"{in_pairs[0]!r} reads two texts together, and students are timed on single "
                "documents: their words/s, latency and memory would be wrong. Limit --size-mb, or "
                'set --min-retention with --fit.minimize "size_mb".'
            )
        self.distillation = load_config(_without(self.config, SECTION))
        self.teacher_path, self.output, self.gpu_id = str(teacher), output, gpu_id
        self.code, self.command, self.log = code, command, log
        self.resume, self.force = resume, force
        self.directory = RunDirectory(
            output,
            kind=SECTION,
            own=frozenset({CANDIDATES, BEST, FAMILY, "fit.json", "fit.md", "fit.html"}),
            kept=frozenset({CACHE}),
            # Another budget finds another student of the same candidates.
            free=frozenset(
                f"{SECTION}.{name}" for name in FitSettings.model_fields.keys() - MEASURING
            ),
            finished=frozenset({"best"}),
        )
        self.directory.check(resume=resume, force=force)
        lang = interpolated.get("nlp", {}).get("lang")
        self.teacher = load_teacher(self.teacher_path, lang)
        self.inputs = {"the teacher": fingerprint_pipeline(self.teacher)}
        self.students: dict[str, Student] = {}
        self.teacher_score = 0.0
        self.date = datetime.now(timezone.utc).isoformat(timespec="seconds")

    def run(self) -> Fit:
        """Find the student, or go on with an earlier run that did not."""
        with (
            self.directory.explain_write_errors(lambda: None),
            self.directory.restoring(),
        ):
            earlier = self.directory.find_earlier(
                self.config, self.inputs, resume=self.resume, force=self.force
            )
            self.directory.prepare(self.config, earlier)
            if earlier is not None:
                self._restore(earlier)
                is_same = earlier.get("settings") == self.settings.model_dump()
                earlier = {**earlier, "finished": earlier.get("finished", False) and is_same}
            finished = self.directory.announce(
                earlier, resume=self.resume, has_checkpoint=bool(earlier)
            )
            if finished:
                assert earlier is not None
                return self._fit(earlier["best"], earlier["machine"])
            self.directory.begin(self.config, {**(earlier or {}), "inputs": self.inputs}, earlier)
            try:
                return self._search()
            except KeyboardInterrupt:
                msg.warn("Stopped. Go on with --resume")
                raise

    # The search

    def _search(self) -> Fit:
        for left_over in self.output.glob(f"{_SCRATCH}*"):  # by a process that was killed
            shutil.rmtree(left_over, ignore_errors=True)
        available = count_cores()
        if self.settings.cores > available:
            msg.warn(
                f"cores = {self.settings.cores}, but this process may use {available}: what is "
                "timed here says nothing about more of them."
            )
        _ = self._documents  # whose errors come before any work
        self._propose()
        self._measure()
        self._score_teacher()
        trained = self._choose()
        survivors = self._halve(trained)
        best = self._finish(survivors)
        machine = describe_machine()
        fit = self._fit(best, machine)
        write_report(fit)
        self._save(finished=True, best=best, machine=machine)
        return fit

    def _propose(self) -> None:
        """List the candidates, beside the ones of an earlier process."""
        start = self._find_start()
        deepest = max(self.settings.layers or [0])
        if start is not None and deepest > start.shape.layers:
            raise ConfigError(
                f"fit.layers = {self.settings.layers}: the encoder that students start from has "
                f"{start.shape.layers} layers."
            )
        candidates = propose(start, self.settings, has_cnn=self._has_cnn())
        if not candidates:
            raise ConfigError(
                "There is no student to try: expected one 'distil_transformer' in [components], or "
                "numbers in [fit] layers or cnn."
            )
        for candidate in candidates:
            self.students.setdefault(candidate.name, Student(candidate))
        names = {candidate.name for candidate in candidates}
        for name, each in self.students.items():
            each.is_tried = name in names
        self.log(f"{len(names)} students are possible: {', '.join(self.tried)}")

    @property
    def tried(self) -> dict[str, Student]:
        """The students of this search, without the others of earlier ones."""
        return {name: each for name, each in self.students.items() if each.is_tried}

    def _find_start(self) -> Start | None:
        """Find the encoder that students can start from."""
        student = self.distillation.student
        ignored = [name for name in SHAPE_SETTINGS if getattr(student, name)]
        if ignored:
            msg.warn(
                f"[distillation.student] {', '.join(ignored)}: not used. [fit] says which shapes "
                "are tried."
            )
        name = encoder_of(self.config)
        if name is None:
            return None
        from transformers import AutoConfig

        obstacle = find_obstacle(self.teacher, self.distillation.spacy)
        if student.start == "config":
            obstacle = 'start = "config" starts from another encoder'
        if obstacle is None:
            (pipe,) = [p for _, p in self.teacher.pipeline if isinstance(p, DistilTransformerPipe)]
            values = dict(get_encoder(pipe.model).loaded.config)
            config = AutoConfig.for_model(values.pop("model_type"), **values)
            return Start(shape_of(config), int(config.vocab_size))
        model = self.config.interpolate()["components"][name].get("model", {})
        msg.warn(
            f"Students cannot start from the teacher's layers: {obstacle}. They start from the "
            f"lowest layers of {model.get('name')}."
        )
        config = read_model_config(str(model.get("name")))
        shape = shape_of(config)
        if model.get("layer") is not None:
            shape = replace(shape, layers=min(shape.layers, model["layer"]))
        return Start(shape, int(config.vocab_size), is_teacher=False)

    def _has_cnn(self) -> bool:
        """Whether a CNN can learn what the config wants."""
        learns_states = any(stage.hidden or stage.vectors for stage in self.distillation.stages)
        return encoder_of(self.config) is not None and not learns_states

    def _measure(self) -> None:
        """Build, quantize and time the candidates that have no costs yet, before any training."""
        self._compare_costs()
        new = [each for each in self.tried.values() if each.costs is None or self._is_due(each)]
        if not new:
            return
        with TemporaryDirectory(dir=self.output, prefix=_SCRATCH) as scratch:
            built = self._build(new, Path(scratch))
            for name, path in built.items():
                self.students[name].costs = Costs(count_bytes(path) / 1e6)
            self._compare_costs()
            self._time({name: built[name] for name in built if self._is_due(self.students[name])})
        self._save()

    def _compare_costs(self) -> None:
        """Look which limits the students miss, as far as their costs are known."""
        for each in self.students.values():
            each.misses = [] if each.costs is None else find_misses(each.costs, self.settings)
            each.fate = ""

    def _is_due(self, student: Student) -> bool:
        """Whether a student that has been built is to be timed.

        Those that are too large are not. Variants of one training are as fast as each other, so it
        is the first of them that is small enough, unless they may differ in a limited memory.
        """
        if student.known_costs().is_timed or student.misses:
            return False
        variants = [
            each
            for each in self.tried.values()
            if each.candidate.training == student.candidate.training
            and each.costs is not None
            and find_misses(Costs(each.costs.size_mb), self.settings) == []
        ]
        return variants[0] is student or self.settings.memory_mb is not None

    def _time(self, pipelines: Mapping[str, Path]) -> None:
        """Time pipelines, and look which limits they miss."""
        texts = [doc.text for doc in self._documents]
        costs = measure_costs(pipelines, texts, self.settings, code=self.code, log=self.log)
        for name, own in costs.items():
            student = self.students[name]
            student.costs, student.misses = own, find_misses(own, self.settings)

    def _build(self, students: Iterable[Student], scratch: Path) -> dict[str, Path]:
        """Make pipelines that cost what the trained students will."""
        built: dict[str, Path] = {}
        by_training: dict[str, list[Candidate]] = {}
        for student in students:
            by_training.setdefault(student.candidate.training, []).append(student.candidate)
        for number, (training, variants) in enumerate(by_training.items(), start=1):
            self.log(f"Building {training} ({number} of {len(by_training)})")
            with self._quiet(training):
                run = self._pipeline_run(variants[0], scratch / training / "run")
                start = scratch / training / "start"
                run.make_start(scratch / training / "run").to_disk(start)
                for each in variants:
                    path = scratch / training / each.name
                    self._convert(each, start, path, limit=_CHECKED, min_agreement=0.0)
                    built[each.name] = path
        return built

    def _pipeline_run(self, candidate: Candidate, output: Path) -> PipelineRun:
        return PipelineRun(
            self.teacher,
            candidate.configure(self.config, str(self.output / CACHE)),
            output,
            overrides=None,
            gpu_id=self.gpu_id,
            resume=False,
            force=False,
        )

    def _convert(
        self, candidate: Candidate, source: Path, output: Path, *, limit: int, min_agreement: float
    ) -> dict[str, float]:
        """Quantize a student. A CNN is copied. RETURNS: its scores, empty without annotation."""
        if candidate.cnn is not None:
            shutil.copytree(source, output)
            return {}
        result = quantize(
            source,
            output,
            corpus=self._corpus(),
            limit=limit,
            min_agreement=min_agreement,
            embedding_bits=cast(Literal[8, 4], candidate.embedding_bits),
            force=True,
        )
        return dict(result.agreement.candidate_scores)

    def _choose(self) -> list[str]:
        """Choose the candidates that are trained: the largest of those that fit.

        RETURNS: their names, the cheapest first.
        """
        fitting: dict[str, str] = {}
        for name, each in self.tried.items():
            if each.misses:
                each.fate = "does not fit"
            elif each.known_costs().is_timed:
                fitting.setdefault(each.candidate.training, name)
        for name, each in self.tried.items():
            first = fitting.get(each.candidate.training, "")
            if not each.misses and name != first:
                each.fate = f"as {first}, which fits" if first else "as its variant, does not fit"
        if not fitting:
            raise ConfigError(self._explain_nothing_fits())
        # A student that contains another one has more room to learn.
        fronts = halving.peel(
            list(fitting.values()),
            lambda a, b: self.students[a].candidate.contains(self.students[b].candidate),
        )
        names = [name for front in fronts for name in sorted(front, key=self._time_of)[::-1]]
        for name in names[self.settings.most :]:
            self.students[name].fate = f"not among the {self.settings.most} largest that fit"
        chosen = sorted(names[: self.settings.most], key=self._time_of)
        self.log(f"{len(fitting)} fit the budget, {len(chosen)} are trained: {', '.join(chosen)}")
        return chosen

    def _time_of(self, name: str) -> float:
        """Return the time for a word, in seconds."""
        return self.students[name].known_costs().seconds_per_word()

    def _explain_nothing_fits(self) -> str:
        known = {name: each.known_costs() for name, each in self.tried.items()}
        nearest = min(known, key=lambda name: distance(known[name], self.settings))
        found = ", ".join(find_all(known[nearest], self.settings))
        return (
            f"None of the {len(known)} students fits. The nearest, {nearest}, has {found}. "
            "Raise the budget or try others (layers, width, ffn, pieces, embedding_bits, cnn in "
            "[fit]), and go on with --resume."
        )

    def _halve(self, names: list[str]) -> list[str]:
        """Train candidates in rungs. RETURNS: those that are trained to the end."""
        every = self.distillation.spacy.interpolate()["training"]["eval_frequency"]
        rungs = halving.rung_steps(self.settings.rungs, self.distillation.max_steps, every)
        for i, step in enumerate(rungs):
            if len(names) == 1:
                break
            ahead = [*rungs[i + 1 :], self.distillation.max_steps]
            for number, name in enumerate(names):
                self._train(name, step, names[number + 1 :], ahead)
            scores = {name: self.students[name].score_at(step) for name in names}
            kept = self._keep(scores)
            for name in names:
                if name not in kept:
                    self.students[name].fate = f"dropped after step {step:,}"
            self._save()
            self.log(f"After step {step:,}, {len(kept)} of {len(names)} go on: {', '.join(kept)}")
            names = kept
        return names

    def _keep(self, scores: Mapping[str, float]) -> list[str]:
        if self.settings.family or self.settings.min_retention is not None:
            costs = {name: self._order_key(name) for name in scores}
            return halving.keep_trade_offs(scores, costs)
        return halving.keep_best(scores, self.settings.keep)

    def _order_key(self, name: str) -> float:
        return order_key(self.students[name].known_costs(), self.settings)

    def _train(self, name: str, step: int, others: Sequence[str], ahead: Sequence[int]) -> float:
        """Train a candidate up to a step, unless it has been.

        others: that are trained to the same step after it. ahead: the rungs that follow.
        RETURNS: the best score up to there.
        """
        student = self.students[name]
        if student.step < step:
            place = self.output / CANDIDATES / student.candidate.training
            place.mkdir(parents=True, exist_ok=True)
            config = student.candidate.configure(self.config, str(self.output / CACHE))
            config.to_disk(place / "config.cfg")
            steps = f"{step:,} of {self.distillation.max_steps:,}"
            self.log(f"Training {name} to step {steps}{self._time_left(name, step, others, ahead)}")
            began = perf_counter()
            with self._quiet(student.candidate.training):
                done = teach(
                    self.teacher,
                    place / "config.cfg",
                    place / "run",
                    gpu_id=self.gpu_id,
                    force=self.force,
                    until=step,
                )
            student.seconds += perf_counter() - began
            student.history[step] = done.score
            self._save()
            kept = self._retention(done.score)
            self.log(f"{name}: score {done.score:.4f}{kept}, {_describe_time(student.seconds)}")
        return student.score_at(step)

    def _time_left(self, name: str, step: int, others: Sequence[str], ahead: Sequence[int]) -> str:
        """Say how long the rest will take, in the words of a log line; empty if unknown."""
        trained = [each for each in self.students.values() if each.seconds and each.step]
        if not trained:
            return ""
        work = sum(each.step * self._time_of(each.candidate.name) for each in trained)
        rate = sum(each.seconds for each in trained) / work
        left = sum(
            max(0, step - self.students[each].step) * self._time_of(each)
            for each in (name, *others)
        )
        n, before = len(others) + 1, step
        mean = sum(self._time_of(each) for each in (name, *others)) / n
        for after in ahead:
            n = max(1, round(n * self.settings.keep))
            left += n * mean * (after - before)
            before = after
        return f"; {_describe_time(rate * left)} to go"

    def _retention(self, score: float) -> str:
        if not self.teacher_score:
            return ""
        return f" ({score / self.teacher_score:.1%} of the teacher's)"

    def _finish(self, names: list[str]) -> str:
        """Train what is left to the end, and write the pipeline. RETURNS: the best student."""
        steps, needed = self.distillation.max_steps, self.settings.min_retention
        if needed is not None and not self.settings.family:
            halving.find_cheapest(
                sorted(names, key=self._order_key),
                lambda name: self._train(name, steps, [], []),
                needed * self.teacher_score,
            )
        else:
            for i, name in enumerate(names):
                self._train(name, steps, names[i + 1 :], [])
        trained = [name for name in names if self.students[name].step == steps]
        for name in names:
            self.students[name].fate = "trained to the end" if name in trained else "not needed"
        ordered = self._rank(trained)
        best = self._write(ordered)
        chosen = self.students[best]
        chosen.fate = "chosen"
        if chosen.misses:
            chosen.fate = "chosen, but misses the budget"
        elif needed is not None and chosen.score < needed * self.teacher_score:
            chosen.fate = "chosen, but its score is too low"
        return best

    def _rank(self, names: Sequence[str]) -> list[str]:
        """Sort students, trained to the end, the one that is wanted first."""
        scores = {name: self.students[name].score for name in names}
        ranked = sorted(names, key=lambda name: -scores[name])
        needed = self.settings.min_retention
        if needed is None:
            return ranked
        good = [name for name in names if scores[name] >= needed * self.teacher_score]
        if not good:
            msg.warn(
                f"No student keeps {needed:.1%} of the teacher's score, {self.teacher_score:.4f}. "
                f"The best, {ranked[0]}, keeps {scores[ranked[0]] / self.teacher_score:.1%}. Train "
                "for more steps, on more text, or give a larger budget."
            )
        return [
            *sorted(good, key=self._order_key),
            *(name for name in ranked if name not in good),
        ]

    def _write(self, ordered: Sequence[str]) -> str:
        """Quantize students, time them as they are now, and write the first that fits.

        A start may have been faster than the trained student: it finds other entities. So the next
        one is taken if the first misses the budget. In a family all are quantized.

        ordered: their names, the one that is wanted first.
        RETURNS: the name of the one that is written.
        """
        with TemporaryDirectory(dir=self.output, prefix=_SCRATCH) as scratch:
            built: dict[str, Path] = {}
            for name in ordered:
                built[name] = Path(scratch) / name
                self._quantize_trained(name, built[name])
                if not self.settings.family:
                    self._time({name: built[name]})
                    if not self.students[name].misses:
                        break
                    misses = "; ".join(self.students[name].misses)
                    self.students[name].fate = "misses the budget after its training"
                    self.log(f"Timed again after its training, {name} has {misses}")
            if self.settings.family:
                self._time(built)
                docs = self._documents
                by_score = sorted(ordered, key=lambda name: -self.students[name].score)
                write_family(
                    self.output / FAMILY,
                    {name: built[name] for name in by_score},
                    {name: self.students[name] for name in by_score},
                    words_per_document=sum(map(len, docs)) / len(docs),
                )
            fitting = [name for name in built if not self.students[name].misses]
            best = fitting[0] if fitting else ordered[0]
            if not fitting:
                misses = "; ".join(self.students[best].misses)
                msg.warn(f"Timed again after its training, {best} misses the budget: {misses}")
            with atomic_directory(self.output / BEST) as unfinished:
                shutil.copytree(built[best], unfinished, dirs_exist_ok=True)
            return best

    def _quantize_trained(self, name: str, output: Path) -> None:
        student = self.students[name]
        source = self.output / CANDIDATES / student.candidate.training / "run" / "model-best"
        self.log(f"Quantizing {name}")
        with self._quiet(student.candidate.training):
            student.scores = self._convert(
                student.candidate, source, output, limit=0, min_agreement=0.95
            )

    # Documents and scores

    @cached_property
    def _documents(self) -> list[Doc]:
        """Read documents to time on, with about `words` tokens."""
        path = self.settings.texts or self._corpus()
        if path is None:
            raise ConfigError(
                "There are no documents to time on: name some in [fit] texts, or development "
                "documents in [paths] dev."
            )
        docs, n_words = [], 0
        for doc in read_documents(Path(path), self.teacher).docs:
            docs.append(doc)
            n_words += len(doc)
            if n_words >= self.settings.words:
                break
        if n_words < _FEW_WORDS <= self.settings.words:
            msg.warn(
                f"The documents to time on, of {path}, have {n_words:,} words: words/s of so few "
                "vary. Name more with --fit.texts"
            )
        if not any(doc.text.strip() for doc in docs):
            raise ConfigError(f"The documents to time on, of {path}, have no words. Name others.")
        return docs

    def _corpus(self) -> str | None:
        """Return the path of the development documents, if there is one."""
        interpolated = self.config.interpolate()
        name = interpolated["training"].get("dev_corpus") or ""
        block: Any = interpolated
        for part in name.split("."):
            block = block.get(part, {}) if isinstance(block, Mapping) else {}
        path = block.get("path") if isinstance(block, Mapping) else None
        return None if path is None else str(path)

    def _score_teacher(self) -> None:
        """Score the teacher as the students are scored, unless an earlier process did."""
        if self.teacher_score:
            return
        self.log("Scoring the teacher")
        first = next(iter(self.students.values())).candidate
        with (
            TemporaryDirectory(dir=self.output, prefix=_SCRATCH) as scratch,
            self._quiet("teacher"),
        ):
            run = self._pipeline_run(first, Path(scratch) / "run")
            examples, weights = run.read_development(Path(scratch) / "run")
            if self._corpus() is None:  # the development documents have what the teacher says
                self.teacher_score = perfect_score(run.student, examples, weights)
            else:
                own = [
                    Example(self.teacher.make_doc(each.reference.text), each.reference)
                    for each in examples
                ]
                self.teacher_score = weighted_score(self.teacher.evaluate(own), weights)
        if not self.teacher_score and self.settings.min_retention is not None:
            raise ConfigError(
                "The teacher's score on the development documents is 0, so there is no retention. "
                "Leave out min_retention, or give annotation and score weights that fit its pipes."
            )
        self._save()

    @contextmanager
    def _quiet(self, training: str) -> Iterator[None]:
        """Send what a step prints to the log of its training."""
        place = self.output / CANDIDATES / training
        place.mkdir(parents=True, exist_ok=True)
        with (
            (place / "log.txt").open("a", encoding="utf-8") as file,
            redirect_stdout(file),
            redirect_stderr(file),
        ):
            yield

    # State

    def _save(self, **more: Any) -> None:
        state = {
            "inputs": self.inputs,
            "finished": False,
            "settings": self.settings.model_dump(),
            "teacher_score": self.teacher_score,
            "students": {name: each.to_dict() for name, each in self.students.items()},
            **more,
        }
        self.directory.write_results(state)

    def _restore(self, earlier: Mapping[str, Any]) -> None:
        self.teacher_score = earlier.get("teacher_score", 0.0)
        self.students = {
            name: Student.from_dict(own) for name, own in earlier.get("students", {}).items()
        }

    def _fit(self, best: str, machine: Mapping[str, Any]) -> Fit:
        return Fit(
            path=self.output / (FAMILY if self.settings.family else BEST),
            best=best,
            students=self.students,
            teacher=self.teacher_path,
            teacher_score=self.teacher_score,
            settings=self.settings,
            steps=self.distillation.max_steps,
            output=self.output,
            machine=dict(machine),
            date=self.date,
            command=self.command,
        )


def teach(
    teacher: Language, config: Path, output: Path, *, gpu_id: int, force: bool, until: int
) -> DistilledPipeline:
    """Train a student up to a step, from where it is. See `distil_pipeline`."""
    run = PipelineRun(
        teacher,
        config,
        output,
        overrides=None,
        gpu_id=gpu_id,
        resume=True,
        force=force,
        until=until,
    )
    return run.run()


def _describe_time(seconds: float) -> str:
    """Say how long something takes, roughly."""
    return f"about {seconds / 60:,.0f} minutes" if seconds >= 90 else f"about {seconds:,.0f} s"


def _add_section(config: Config) -> None:
    config.setdefault(SECTION, {})


def _without(config: Config, section: str) -> Config:
    own = config.copy()
    own.pop(section, None)
    return own
