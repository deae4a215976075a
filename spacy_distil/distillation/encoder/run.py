"""A distillation run, from its config to the saved student."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import (
    DistributedDataParallelKwargs,
    InitProcessGroupKwargs,
    ProjectConfiguration,
)
from wasabi import Printer

from spacy_distil.distillation.encoder.card import student_card
from spacy_distil.distillation.encoder.checkpoint import Checkpoints
from spacy_distil.distillation.encoder.compilation import explain_compile_errors
from spacy_distil.distillation.encoder.config import (
    FREE_ON_RESUME,
    EncoderDistilConfig,
    TrainingSettings,
    load_config,
)
from spacy_distil.distillation.encoder.corpus import Corpus, load_corpus, plan_corpus
from spacy_distil.distillation.encoder.distiller import Distiller
from spacy_distil.distillation.encoder.loop import Trainer, train
from spacy_distil.distillation.encoder.memory import find_micro_batch
from spacy_distil.distillation.encoder.objectives import prepare_objectives
from spacy_distil.distillation.encoder.processes import on_main
from spacy_distil.distillation.encoder.steps import StepBlocks, plan_stages, plan_steps
from spacy_distil.engines.changes import ATTENTION_DROPOUTS, DROPOUTS, EncoderChanges
from spacy_distil.engines.onednn import is_faster, use_onednn
from spacy_distil.engines.precision import has_native_bf16
from spacy_distil.errors import ConfigError, DistilError, require
from spacy_distil.runs.directory import RunDirectory
from spacy_distil.runs.files import scratch_directory
from spacy_distil.students.heat_map import print_importance
from spacy_distil.students.importance import importance_batches, measure_importance
from spacy_distil.students.licence import find_licence
from spacy_distil.students.making import make_student
from spacy_distil.students.masked_lm_heads import add_masked_lm_head
from spacy_distil.students.masking import Masking
from spacy_distil.students.shapes import StudentShape, choose_shape
from spacy_distil.students.teachers import Teacher, load_teacher, quiet_transformers

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class DistilledEncoder:
    """A finished run.

    path: the student's directory.
    steps: optimizer steps of the whole run.
    scores: the last held-out scores, see `evaluation.evaluate`.
    device: what it was trained on.
    """

    path: Path
    steps: int
    scores: dict[str, float]
    device: str


def run(
    config: str | Path | Mapping[str, Any],
    output: Path,
    *,
    overrides: Mapping[str, Any] | None,
    gpu_id: int | None,
    resume: bool,
    force: bool,
) -> DistilledEncoder:
    """See `distil_encoder`."""
    settings = load_config(config, overrides)
    directory = RunDirectory(
        output,
        settings="distil.cfg",
        results="distil.json",
        kept=frozenset({"cache"}),
        free=FREE_ON_RESUME,
    )
    if not (resume or force):
        directory.refuse_run()
    accelerator = _accelerator(gpu_id, settings.training, output)
    main, device = accelerator.is_main_process, _describe(accelerator)
    say = Printer(no_print=not main)
    say.info(f"Training on {device}, mixed precision: {accelerator.mixed_precision}")

    teacher = load_teacher(settings.teacher.name, revision=settings.teacher.revision)
    wanted = settings.student
    shape = choose_shape(
        teacher.model.config,
        wanted.layers,
        wanted.n_layers,
        heads=wanted.heads,
        ffn=wanted.ffn,
        width=wanted.width,
    )
    _check_head(settings, teacher)
    plans = plan_corpus(settings.corpus, teacher)
    inputs = {
        "teacher": teacher.fingerprint,
        **{plan.setting: plan.fingerprint for plan in plans.values()},
        # A plan is no mapping: that the stages are the same ones is not enough.
        "the order of objectives and stages": repr([[*settings.objectives], [*settings.stages]]),
    }
    # One process decides what becomes of an earlier run, before any other looks.
    earlier = on_main(
        accelerator,
        lambda: directory.resume_or_replace(settings.source, inputs, resume=resume, force=force),
    )
    checkpoints = Checkpoints(output / "checkpoints", keep=settings.training.keep_checkpoints)
    has_checkpoint = bool(checkpoints.steps())
    if directory.announce(earlier, resume=resume, has_checkpoint=has_checkpoint, printer=say):
        accelerator.end_training()
        return _distilled(output, earlier or {})
    if main:
        directory.write_settings(settings.source)
    cache = Path(settings.corpus.cache) if settings.corpus.cache else output / "cache"
    with accelerator.local_main_process_first():
        corpus = load_corpus(plans, settings.corpus, teacher, cache=cache)
    before = (earlier or {}).get("mixed_precision", accelerator.mixed_precision)
    if before != accelerator.mixed_precision:
        say.warn(f"The run was in mixed precision: {before}. Here it goes on in another")
    results = {
        **(earlier or {}),
        "finished": False,
        "inputs": inputs,
        "mixed_precision": accelerator.mixed_precision,
    }
    if main:
        directory.write_results(results)
    if not len(corpus.held_out):
        say.warn("Nothing is held out: set corpus.dev or corpus.dev_fraction to see scores")

    training = settings.training
    starts = plan_steps(training, len(corpus.train), accelerator.num_processes)
    stages = plan_stages(settings, len(starts) - 1)
    masking = Masking.for_tokenizer(
        teacher.tokenizer, settings.mask_probability, seed=training.seed
    )
    torch.manual_seed(training.seed)
    teacher.model.to(accelerator.device)
    student = _make_student(settings, teacher, shape, corpus, is_resumed=has_checkpoint)
    prepare_objectives(settings.objectives, teacher.model.config, student.config)
    say.info(
        f"Student: layers {', '.join(map(str, shape.layers))} of {teacher.n_layers}, "
        f"{student.num_parameters():,} of {teacher.model.num_parameters():,} parameters. "
        f"Blocks: {len(corpus.train):,} to train on, {len(corpus.held_out):,} held out"
    )
    prepare_models(teacher.model, student, accelerator)
    distiller = Distiller(teacher.model, student, settings.objectives).to(accelerator.device)
    micro_batch = training.micro_batch
    if micro_batch == "auto":
        # What was found for a device holds for it: a resumed run sums in the same order.
        found = (earlier or {}).get("micro_batch", {})
        micro_batch = found.get(device) or find_micro_batch(
            distiller,
            stages,
            accelerator,
            masking=masking.to(accelerator.device),
            block_size=settings.corpus.block_size,
            largest_step=int(np.diff(starts).max()),
        )
    results["micro_batch"] = {device: micro_batch}
    if main:
        directory.write_results(results)
    # Not before: DistributedDataParallel takes note of every gradient, those of the trial too, and
    # each size that the trial takes would be compiled anew.
    trainer = Trainer.prepare(distiller, training, masking, accelerator)
    blocks = StepBlocks(
        corpus.train,
        starts,
        masking=masking,
        pad_id=int(teacher.tokenizer.pad_token_id),
        seed=training.seed,
        micro_batch=micro_batch,
        process=accelerator.process_index,
        n_processes=accelerator.num_processes,
    )
    accelerator.init_trackers("distil")
    try:
        with explain_compile_errors() if training.compile else nullcontext():
            scores = train(
                trainer,
                corpus,
                blocks,
                stages,
                training,
                checkpoints=checkpoints,
                output=output,
                describe=lambda row: teacher.tokenizer.decode(corpus.train[[row]][0][1:20]),
            )
    except DistilError:
        # Not the processes' group, which the traceback still holds.
        for tracker in accelerator.trackers:
            tracker.finish()
        raise
    results |= {"finished": True, "steps": len(starts) - 1, "scores": scores, "device": device}
    if main:
        _save(student, teacher, corpus, settings, shape, results, directory)
    accelerator.wait_for_everyone()
    # The group of processes must end before the last that holds it: gloo's threads would wait for
    # Python, which waits for them.
    accelerator.free_memory(trainer)
    del trainer
    accelerator.end_training()
    say.good(f"Encoder saved to {output}")
    return _distilled(output, results)


def prepare_models(
    teacher: PreTrainedModel, student: PreTrainedModel, accelerator: Accelerator
) -> None:
    """Make both as fast as they can be: the teacher in the precision that it is run in, and linear
    layers by the library that is the fastest here.
    """
    if accelerator.mixed_precision == "bf16":
        teacher.to(torch.bfloat16)
    teacher.to(accelerator.device)
    for model in (teacher, student):
        # It looks for padding wherever there is no mask, and makes the CPU wait for the answer.
        # Blocks without a mask have none.
        model.base_model.warn_if_padding_and_no_attention_mask = lambda *ids: None
        if is_faster(accelerator.device):
            use_onednn(model)


def _make_student(
    settings: EncoderDistilConfig,
    teacher: Teacher,
    shape: StudentShape,
    corpus: Corpus,
    *,
    is_resumed: bool,
) -> PreTrainedModel:
    """The student as it begins, without the teacher's dropout.

    is_resumed: its weights come from a checkpoint, so that those it would begin with do not matter.
    """
    wanted = settings.student
    start = "random" if is_resumed else wanted.start
    importance = None
    if shape.cuts and start == "teacher":
        most = min(wanted.importance_blocks, len(corpus.train))
        blocks = corpus.train[np.linspace(0, len(corpus.train) - 1, most).astype(int)]
        importance = measure_importance(teacher, importance_batches(blocks, teacher))
        if PartialState().is_main_process:
            print_importance(importance, shape, model_type=teacher.model.config.model_type)
    source = teacher
    if not teacher.has_mlm_head and any(o.needs.student_head for o in settings.objectives.values()):
        source = replace(teacher, model=add_masked_lm_head(teacher.model), has_mlm_head=True)
    config, dropout = source.model.config, settings.training.dropout
    names = [name for name in (*DROPOUTS, *ATTENTION_DROPOUTS) if hasattr(config, name)]
    before = {name: getattr(config, name) for name in names}
    EncoderChanges(dropout=dropout, attention_dropout=dropout).apply(config)
    student = make_student(source, shape, importance, start=start)
    for name, value in before.items():
        setattr(config, name, value)
    return student


def _accelerator(gpu_id: int | None, settings: TrainingSettings, output: Path) -> Accelerator:
    """The devices to train on. gpu_id: see `distil_encoder`."""
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if gpu_id is not None and gpu_id >= 0:
        if several:
            raise ConfigError(
                f"--gpu-id {gpu_id}: each process that a launcher starts takes the GPU of its own "
                f"number. Leave --gpu-id out, or choose GPUs by CUDA_VISIBLE_DEVICES"
            )
        found = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if gpu_id >= found:
            raise ConfigError(
                f"--gpu-id {gpu_id}: torch sees {found} CUDA devices. Leave --gpu-id out to take "
                f"what there is, or give -1 for the CPU"
            )
        torch.cuda.set_device(gpu_id)
    cpu = gpu_id is not None and gpu_id < 0
    precision = settings.mixed_precision
    if precision == "auto":
        device = torch.device("cuda" if torch.cuda.is_available() and not cpu else "cpu")
        precision = "bf16" if has_native_bf16(device) else "no"
    if settings.tensorboard:
        require("tensorboard", extra="train", purpose="training.tensorboard = true")
    if not several:
        # accelerate keeps one state per process; a run must not inherit that of an earlier one.
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
    return Accelerator(
        cpu=cpu,
        mixed_precision=precision,
        log_with="tensorboard" if settings.tensorboard else None,
        project_config=ProjectConfiguration(str(output), logging_dir=str(output / "logs")),
        kwargs_handlers=[
            # A stage need not use all of the student: its head, or its uppermost layers.
            DistributedDataParallelKwargs(find_unused_parameters=True),
            # So long the others wait while one process tokenizes.
            InitProcessGroupKwargs(timeout=timedelta(hours=2)),
        ],
    )


def _describe(accelerator: Accelerator) -> str:
    device = accelerator.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()
    several = f"{accelerator.num_processes} x " if accelerator.num_processes > 1 else ""
    return f"{several}{name}"


def _check_head(settings: EncoderDistilConfig, teacher: Teacher) -> None:
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


def _distilled(output: Path, results: Mapping[str, Any]) -> DistilledEncoder:
    return DistilledEncoder(output, results["steps"], results["scores"], results["device"])


def _save(
    student: PreTrainedModel,
    teacher: Teacher,
    corpus: Corpus,
    settings: EncoderDistilConfig,
    shape: StudentShape,
    results: Mapping[str, Any],
    directory: RunDirectory,
) -> None:
    """Write the model, then the results that declare the run finished, then drop checkpoints."""
    output = directory.path
    for name in (*DROPOUTS, *ATTENTION_DROPOUTS):  # who trains it further has the teacher's
        if hasattr(student.config, name):
            setattr(student.config, name, getattr(teacher.model.config, name))
    card = student_card(
        settings,
        teacher=teacher,
        licence=find_licence(teacher.name, revision=settings.teacher.revision),
        shape=shape,
        n_parameters=student.num_parameters(),
        sources=corpus.sources,
        steps=results["steps"],
        scores=results["scores"],
        device=results["device"],
    )
    with scratch_directory(output) as unfinished:
        with quiet_transformers():
            student.save_pretrained(unfinished)
            teacher.tokenizer.save_pretrained(unfinished)
        (unfinished / "README.md").write_text(card, encoding="utf-8")
        for path in sorted(unfinished.iterdir()):
            path.replace(output / path.name)
    directory.write_results(results)
    if settings.training.remove_checkpoints:
        shutil.rmtree(output / "checkpoints", ignore_errors=True)
