"""An encoder distillation, from its config to the saved student."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from wasabi import Printer

from spacy_distil.distillation.encoder.building import CorpusPlan
from spacy_distil.distillation.encoder.card import student_card
from spacy_distil.distillation.encoder.checkpoint import Checkpoints
from spacy_distil.distillation.encoder.compilation import compiling
from spacy_distil.distillation.encoder.config import (
    FREE_ON_RESUME,
    EncoderDistilConfig,
    load_config,
)
from spacy_distil.distillation.encoder.corpus import (
    Corpus,
    LanguageShare,
    load_corpus,
    plan_corpus,
    settings_of_text,
    shared_files,
)
from spacy_distil.distillation.encoder.devices import (
    describe_devices,
    find_unused_parameters,
    make_accelerator,
    prepare_models,
)
from spacy_distil.distillation.encoder.distiller import Distiller
from spacy_distil.distillation.encoder.loop import TrainingLoop
from spacy_distil.distillation.encoder.memory import find_micro_batch
from spacy_distil.distillation.encoder.objectives import prepare_objectives
from spacy_distil.distillation.encoder.processes import on_main
from spacy_distil.distillation.encoder.steps import StepBlocks, plan_stages, plan_steps
from spacy_distil.distillation.encoder.trainer import Trainer
from spacy_distil.distillation.encoder.trial import has_unused_parameters
from spacy_distil.engines.changes import EncoderChanges
from spacy_distil.engines.config_check import ATTENTION_DROPOUTS, DROPOUTS
from spacy_distil.engines.files import WEIGHTS
from spacy_distil.engines.pretrained import save_encoder
from spacy_distil.errors import ConfigError, DistilError
from spacy_distil.runs.digests import SUMS
from spacy_distil.runs.directory import RunDirectory
from spacy_distil.runs.files import atomic_contents
from spacy_distil.runs.interruption import explain_stop
from spacy_distil.students.card import describe_layers
from spacy_distil.students.heat_map import print_importance
from spacy_distil.students.importance import (
    Importance,
    importance_batches,
    measure_importance,
)
from spacy_distil.students.licence import find_licence
from spacy_distil.students.making import make_student
from spacy_distil.students.masked_lm_heads import add_masked_lm_head, masked_lm_head
from spacy_distil.students.masking import Masking
from spacy_distil.students.sample_text import N_COUNTED_BLOCKS, count_pieces, read_corpus
from spacy_distil.students.shapes import StudentShape, choose_shape
from spacy_distil.students.teachers import Teacher, load_teacher
from spacy_distil.students.vocabulary import prune_teacher
from spacy_distil.text.languages import (
    guess_language,
    guess_tokenizer_language,
    language_name,
    stop_words,
)
from spacy_distil.text.plain_text import TxtFiles, read_parts
from spacy_distil.text.sampling import MANY_REPEATS

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Documents, or parts of them, from the beginning of the corpus that show its language.
LANGUAGE_PARTS = 200


@dataclass(frozen=True)
class DistilledEncoder:
    """A finished run.

    path: directory of the student.
    steps: optimizer steps of the whole run.
    scores: the last held-out scores, see `evaluation.evaluate`.
    device: name of the device, or devices, of the training.
    """

    path: Path
    steps: int
    scores: dict[str, float]
    device: str


class EncoderRun:
    """A run of `distil_encoder`, which documents the arguments.

    `run` calls the other methods in order. With several processes, each has its own instance.

    teacher, shape: see `load_teacher`.
    corpus_plans, inputs: see `plan`; inputs are fingerprints by name.
    earlier: results so far of the run to resume; None if this is a new one.
    results: of this run so far, as `distil.json` holds them.
    corpus: the blocks to train on and the held-out ones.
    student: the model that is trained.
    """

    teacher: Teacher
    shape: StudentShape
    corpus_plans: list[CorpusPlan]
    inputs: dict[str, str]
    earlier: dict[str, Any] | None
    results: dict[str, Any]
    corpus: Corpus
    student: PreTrainedModel

    def __init__(
        self,
        config: str | Path | Mapping[str, Any],
        output: Path,
        *,
        overrides: Mapping[str, Any] | None,
        gpu_id: int | None,
        resume: bool,
        force: bool,
    ) -> None:
        self.settings = load_config(config, overrides)
        self.training = self.settings.training
        self.output = output
        self.resume = resume
        self.force = force
        self.directory = RunDirectory(
            output,
            kind="encoder",
            own=frozenset({"log.jsonl", "diverged.json", SUMS, WEIGHTS}),
            kept=frozenset({"cache"}),
            free=FREE_ON_RESUME,
            finished=frozenset({"steps", "scores", "device"}),
            model=WEIGHTS,
        )
        self.directory.check(resume=resume, force=force)
        self.checkpoints = Checkpoints(output / "checkpoints", keep=self.training.keep_checkpoints)
        self.accelerator = make_accelerator(gpu_id, self.training, output)
        self.is_main = self.accelerator.is_main_process
        self.device = describe_devices(self.accelerator)
        self.printer = Printer(no_print=not self.is_main)

    def run(self) -> DistilledEncoder:
        """Distil the student and save it, unless an earlier run has done so."""
        with self.directory.explain_write_errors(self.checkpoints.newest_step):
            return self._run()

    def _run(self) -> DistilledEncoder:
        precision = self.accelerator.mixed_precision
        self.printer.info(f"Training on {self.device}, mixed precision: {precision}")
        self.load_teacher()
        self.prune_vocabulary()
        self.plan()
        if self.open_output():
            self.accelerator.end_training()
            return self.result()
        self.load_corpus()
        self.plan_steps()
        self.make_student()
        self.make_distiller()
        self.train()
        self.save()
        self.close()
        self.printer.good(f"Encoder saved to {self.output}")
        self.tell_rises()
        return self.result()

    def tell_rises(self) -> None:
        """Say in yellow if the student is no better than at its start, in all or in one language.

        If the mean over languages is no better, it alone is told.
        """
        if "" in self.rises:
            before, after = self.rises[""]
            self.printer.warn(
                f"The encoder is no better than at its start: its held-out total was {before:.4g} "
                f"before the first step, and is {after:.4g} after the last. Give it more text or "
                f"steps, a lower training.learn_rate, or other objectives"
            )
        elif self.rises:
            totals = (f"{name} {a:.4g}, then {b:.4g}" for name, (a, b) in self.rises.items())
            self.printer.warn(
                f"The encoder is better than at its start on the mean of the languages, but not in "
                f"{', '.join(self.rises)}. Held-out totals before the first step and after the "
                f"last: {'; '.join(totals)}. Give it more text of these, or a lower corpus.alpha"
            )

    def load_teacher(self) -> None:
        """Load the teacher, choose the student's shape, and check that the teacher has a head if an
        objective needs it.
        """
        self.teacher = load_teacher(
            self.settings.teacher.name, revision=self.settings.teacher.revision
        )
        student = self.settings.student
        self.shape = choose_shape(
            self.teacher.model.config,
            student.layers,
            student.n_layers,
            heads=student.heads,
            ffn=student.ffn,
            width=student.width,
            share_layers=student.share_layers,
            embedding_size=student.embedding_size,
        )
        _check_head(self.settings, self.teacher)

    def prune_vocabulary(self) -> None:
        """Give teacher and student a smaller vocabulary, if the settings say so."""
        vocabulary = self.settings.student.vocabulary
        if not vocabulary.is_pruned:
            return
        corpus = self.settings.corpus
        texts = (
            text
            for setting, kind, _, paths in settings_of_text(corpus)
            if kind == "train"
            for path in paths
            for text in read_corpus(Path(path), setting=setting, txt_documents=corpus.txt_documents)
        )
        self.teacher, pruned = prune_teacher(self.teacher, texts, vocabulary)
        self.printer.info(f"Vocabulary: {pruned.describe()}")

    def plan(self) -> None:
        """Find the files of the corpus, and fingerprint all inputs of the run."""
        self.corpus_plans = plan_corpus(self.settings.corpus, self.teacher)
        self.inputs = {
            "teacher": self.teacher.fingerprint,
            **{plan.setting: plan.fingerprint for plan in self.corpus_plans},
            # The comparison of settings ignores order, but here it matters.
            "the order of objectives and stages": repr(
                [[*self.settings.objectives], [*self.settings.stages]]
            ),
        }

    def open_output(self) -> bool:
        """Find the run to resume, or prepare a new one.

        RETURNS: whether the run is finished already.
        """
        # One process does this before any other looks into the directory.
        self.earlier = on_main(self.accelerator, self.find_earlier)
        self.results = dict(self.earlier or {})
        self.has_checkpoint = self.earlier is not None and bool(self.checkpoints.steps())
        return self.directory.announce(
            self.earlier,
            resume=self.resume,
            has_checkpoint=self.has_checkpoint,
            printer=self.printer,
        )

    def find_earlier(self) -> dict[str, Any] | None:
        """Find the run to resume, and prepare the directory for this one."""
        source = self.settings.source
        earlier = self.directory.find_earlier(
            source, self.inputs, resume=self.resume, force=self.force
        )
        self.directory.prepare(source, earlier)
        if earlier is not None and earlier.get("finished"):
            self.remove_checkpoints()  # the run may have been killed just before it did so
        return earlier

    def load_corpus(self) -> None:
        """Tokenize the corpus, or find it in the cache."""
        corpus = self.settings.corpus
        cache = Path(corpus.cache) if corpus.cache else self.output / "cache"
        with self.accelerator.local_main_process_first():
            self.corpus = load_corpus(
                self.corpus_plans,
                corpus,
                self.teacher,
                cache=cache,
                checks=self.accelerator.is_local_main_process,
            )
        precision = self.accelerator.mixed_precision
        earlier_precision = self.results.get("mixed_precision", precision)
        if earlier_precision != precision:
            self.printer.warn(
                f"The run was in mixed precision: {earlier_precision}. It goes on in mixed "
                f"precision: {precision}"
            )
        self.results |= {"inputs": self.inputs, "mixed_precision": precision}
        self.check_files()
        self.check_languages()
        shares = self.corpus.train.shares()
        if len(shares) > 1:
            self.tell_shares(shares)
        unseen = [s.language for s in shares if s.language not in self.corpus.held_out.languages]
        if unseen:
            dev = "corpus.dev_languages" if corpus.languages else "corpus.dev"
            of = f" of {', '.join(unseen)}" if len(shares) > 1 else ""
            self.printer.warn(
                f"Nothing is held out{of}: set {dev} or corpus.dev_fraction to see scores"
            )

    def tell_shares(self, shares: Sequence[LanguageShare]) -> None:
        """Say what share of an epoch each language has, and in yellow if one is repeated often."""
        alpha = self.settings.corpus.alpha
        listed = (
            f"{s.language} {100 * s.share:.1f} % ({s.blocks:,} blocks x {s.repeats:.3g})"
            for s in shares
        )
        self.printer.info(f"Languages in an epoch, corpus.alpha = {alpha:g}: {', '.join(listed)}")
        often = [s for s in shares if s.repeats > MANY_REPEATS]
        if often:
            listed = (f"{s.language} {s.repeats:.0f} times" for s in often)
            self.printer.warn(
                f"An epoch repeats small languages very often: {', '.join(listed)}. The student "
                f"may learn their text by heart. Give more text of these languages, or raise "
                f"corpus.alpha (now {alpha:g}; with 1 no language is repeated)"
            )

    def check_files(self) -> None:
        """Say in yellow if files are named more than once."""
        shared = shared_files(self.corpus_plans)
        if not shared:
            return
        path, settings = next(iter(shared.items()))
        more = f", and {len(shared) - 1:,} more files are shared" if len(shared) > 1 else ""
        self.printer.warn(
            f"{path} is text of {' and of '.join(settings)}{more}. The student learns such text "
            "as often as it is named, and scores on it tell nothing if it is held out. Name each "
            "file once"
        )

    def check_languages(self) -> None:
        """Say in yellow if text is in another language than its name says, or than the teacher's.

        A name counts if it is the code of a language that spaCy has stop words of.
        """
        tokenizer = self.teacher.tokenizer
        foreign: dict[str, list[str]] = {}
        for plan in self.corpus_plans:
            if plan.kind == "dev":
                continue
            named = plan.language if plan.language and stop_words(plan.language) else None
            txt = TxtFiles(plan.txt_documents)
            first = (part.text for path in plan.files for part in read_parts(path, txt))
            guessed = guess_language(islice(first, LANGUAGE_PARTS), named)
            if named and guessed:
                self.printer.warn(
                    f"{plan.setting} seems to be in {language_name(guessed)}, not in "
                    f"{language_name(named)}: look whether it names the right files"
                )
            lang = guessed or named
            if lang is None:
                continue
            own = guess_tokenizer_language(
                lambda texts: tokenizer(list(texts), add_special_tokens=False)["input_ids"],
                len(tokenizer),
                lang,
            )
            if own is not None:
                foreign.setdefault(own, []).append(lang)
        for own, langs in foreign.items():
            names = [*dict.fromkeys(map(language_name, langs))]
            where = "The corpus seems" if len(self.corpus.train.languages) == 1 else "Text seems"
            self.printer.warn(
                f"{where} to be in {', '.join(names)}, but the teacher {self.teacher.name} is made "
                f"for {language_name(own)}: its tokenizer splits the most frequent words there"
            )

    def plan_steps(self) -> None:
        """Plan the blocks, stages and masks of each step."""
        self.starts = plan_steps(
            self.training, self.corpus.train.epoch_length, self.accelerator.num_processes
        )
        self.n_steps = len(self.starts) - 1
        self.stages = plan_stages(self.settings, self.n_steps)
        self.masking = Masking.for_tokenizer(
            self.teacher.tokenizer, self.settings.mask_probability, seed=self.training.seed
        )

    def make_student(self) -> None:
        """Make the student as it is before training, and fit the objectives to both models."""
        torch.manual_seed(self.training.seed)
        self.teacher.model.to(self.accelerator.device)
        # A checkpoint will replace the weights of a resumed run.
        start = "random" if self.has_checkpoint else self.settings.student.start
        importance = self.measure_importance() if start == "teacher" else None
        teacher = self.teacher
        # The student copies the dropout of the teacher's config, which must not change itself.
        dropouts = _dropouts(teacher.model)
        dropout = self.training.dropout
        EncoderChanges(dropout=dropout, attention_dropout=dropout).apply(teacher.model.config)
        self.student = make_student(
            teacher, self.shape, importance, start=start, counts=self.count_pieces()
        )
        dropouts.apply(teacher.model.config)
        needs_head = any(o.needs.student_head for o in self.settings.objectives.values())
        if needs_head and masked_lm_head(self.student) is None:
            self.student = add_masked_lm_head(self.student)
        prepare_objectives(self.settings.objectives, self.teacher.model.config, self.student.config)
        self.printer.info(
            f"Student: {describe_layers(self.shape, f' of {self.teacher.n_layers}')}, "
            f"{self.student.num_parameters():,} of "
            f"{self.teacher.n_parameters:,} parameters. Blocks: "
            f"{len(self.corpus.train):,} to train on, {len(self.corpus.held_out):,} held out"
        )

    def count_pieces(self) -> np.ndarray | None:
        """Count the pieces of some blocks, if the student factorizes its embeddings."""
        if self.shape.embedding_size is None:
            return None
        blocks = self.sample_blocks(N_COUNTED_BLOCKS)
        return count_pieces(blocks, int(self.teacher.model.config.vocab_size))

    def sample_blocks(self, most: int) -> list[np.ndarray]:
        """Read blocks of an epoch at equal distances. Each language counts as in training."""
        numbers = self.corpus.train.epoch(0, seed=self.training.seed)
        places = np.linspace(0, len(numbers) - 1, min(most, len(numbers))).astype(int)
        return self.corpus.train[numbers[places]]

    def measure_importance(self) -> Importance | None:
        """Measure the importance of the teacher's parts, if the student leaves some of them out."""
        if not self.shape.cuts:
            return None
        blocks = self.sample_blocks(self.settings.student.importance_blocks)
        importance = measure_importance(self.teacher, importance_batches(blocks, self.teacher))
        if self.is_main:
            model_type = self.teacher.model.config.model_type
            print_importance(importance, self.shape, model_type=model_type)
        return importance

    def make_distiller(self) -> None:
        """Join both models and the objectives, and choose the size of micro-batches."""
        prepare_models(self.teacher.model, self.student, self.accelerator)
        device = self.accelerator.device
        self.distiller = Distiller(self.teacher.model, self.student, self.settings.objectives).to(
            device
        )
        micro_batch = self.training.micro_batch
        if micro_batch == "auto":
            # A run that is resumed on the same device keeps its size, and so the order of sums.
            earlier = self.results.get("micro_batch", {})
            micro_batch = earlier.get(self.device) or find_micro_batch(
                self.distiller,
                self.stages,
                self.accelerator,
                masking=self.masking.to(device),
                block_size=self.settings.corpus.block_size,
                largest_step=int(np.diff(self.starts).max()),
            )
        self.micro_batch = micro_batch
        self.results["micro_batch"] = {self.device: micro_batch}

    def train(self) -> None:
        """Train the student in place."""
        blocks = StepBlocks(
            self.corpus.train,
            self.starts,
            masking=self.masking,
            pad_id=int(self.teacher.tokenizer.pad_token_id),
            seed=self.training.seed,
            micro_batch=self.micro_batch,
            process=self.accelerator.process_index,
            n_processes=self.accelerator.num_processes,
            pin=self.accelerator.device.type == "cuda",
        )
        # Trials come first. DistributedDataParallel would record their gradients, and torch would
        # compile the models again for each size.
        if self.accelerator.num_processes > 1:
            found = has_unused_parameters(
                self.distiller,
                self.stages,
                self.accelerator,
                masking=self.masking.to(self.accelerator.device),
                block_size=self.settings.corpus.block_size,
            )
            find_unused_parameters(self.accelerator, found)
        trainer = Trainer.prepare(self.distiller, self.training, self.masking, self.accelerator)
        loop = TrainingLoop(
            trainer,
            self.corpus,
            blocks,
            self.stages,
            self.training,
            checkpoints=self.checkpoints,
            output=self.output,
            describe=self.describe_block,
        )
        # All that the settings and the corpus could be refused for has been looked at.
        on_main(
            self.accelerator,
            lambda: self.directory.begin(self.settings.source, self.results, self.earlier),
        )
        self.accelerator.init_trackers("distil")
        try:
            with compiling() if self.training.compile else nullcontext():
                self.scores = loop.run()
            self.rises = loop.rises()
        except DistilError:
            # The group of processes has to stay: the traceback holds modules that use it.
            for tracker in self.accelerator.trackers:
                tracker.finish()
            raise
        except BaseException as error:
            newest_step = self.checkpoints.newest_step()
            explain_stop(error, loop.step, newest_step, printer=self.printer)
            raise

    def describe_block(self, number: int) -> str:
        """The first words of a training block."""
        pieces = self.corpus.train[[number]][0]
        text: str = self.teacher.tokenizer.decode(pieces[1:20])
        return text

    def save(self) -> None:
        """Write the model, then the results that declare the run finished; delete checkpoints."""
        if self.is_main:
            self.write_model()
        self.results |= {
            "finished": True,
            "steps": self.n_steps,
            "scores": self.scores,
            "device": self.device,
        }
        if self.is_main:
            self.directory.write_results(self.results)
            self.remove_checkpoints()

    def remove_checkpoints(self) -> None:
        """Delete the checkpoints of a finished run, if the settings say so."""
        if self.training.remove_checkpoints:
            self.checkpoints.remove()

    def write_model(self) -> None:
        """Write the student, its tokenizer and its model card."""
        # Whoever trains the student further gets the teacher's dropout.
        _dropouts(self.teacher.model).apply(self.student.config)
        card = student_card(
            self.settings,
            teacher=self.teacher,
            licence=find_licence(self.teacher.name, revision=self.settings.teacher.revision),
            shape=self.shape,
            n_parameters=self.student.num_parameters(),
            corpus=self.corpus,
            steps=self.n_steps,
            scores=self.scores,
            device=self.device,
        )
        with atomic_contents(self.output, own=(), last=WEIGHTS) as unfinished:
            save_encoder(self.student, self.teacher.tokenizer, unfinished)
            (unfinished / "README.md").write_text(card, encoding="utf-8")

    def close(self) -> None:
        """Wait for all processes and end their group."""
        self.accelerator.wait_for_everyone()
        if self.accelerator.num_processes > 1:
            # No module that uses the group may outlive it: gloo's threads and Python would wait for
            # each other.
            self.accelerator.free_memory()
        self.accelerator.end_training()

    def result(self) -> DistilledEncoder:
        """The finished run, as the caller gets it."""
        results = self.results
        return DistilledEncoder(self.output, results["steps"], results["scores"], results["device"])


def _dropouts(model: PreTrainedModel) -> EncoderChanges:
    """The dropout of a model, for its own config or one of another family."""
    dropout, attention_dropout = (
        next(getattr(model.config, name) for name in names if hasattr(model.config, name))
        for names in (DROPOUTS, ATTENTION_DROPOUTS)
    )
    return EncoderChanges(dropout=dropout, attention_dropout=attention_dropout)


def _check_head(settings: EncoderDistilConfig, teacher: Teacher) -> None:
    """Raise `ConfigError` if an objective needs a head that the teacher does not have."""
    needy = [name for name, o in settings.objectives.items() if o.needs.teacher_head]
    if teacher.has_mlm_head or not needy:
        return
    switches = " ".join(f"--objectives.{name}.weight 0" for name in needy)
    raise ConfigError(
        f"the teacher {teacher.name!r} has no masked-LM head, which these objectives need: "
        f"{', '.join(needy)}.\nEither switch them off and learn its hidden states only:\n"
        f"  {switches}\nor give it a head by training it on your text:\n"
        f"  python -m spacy distil adapt {teacher.name} --corpus TEXT --output DIR\n"
        f"or take a teacher that has one, such as bert-base-uncased:\n"
        f"  --teacher.name bert-base-uncased"
    )
