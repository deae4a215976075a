"""A distillation run, from its config to the saved student."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import ProjectConfiguration
from wasabi import msg

from spacy_distil.distillation.batches import Masking
from spacy_distil.distillation.card import model_card
from spacy_distil.distillation.config import (
    FREE_ON_RESUME,
    DistilConfig,
    TrainingSettings,
    load_config,
)
from spacy_distil.distillation.corpus import Corpus, load_corpus, plan_corpus
from spacy_distil.distillation.distiller import Distiller
from spacy_distil.distillation.loop import count_steps, train
from spacy_distil.distillation.students import choose_layers, make_student
from spacy_distil.distillation.teachers import Teacher, load_teacher, quiet_transformers
from spacy_distil.engines.precision import has_native_bf16
from spacy_distil.errors import ConfigError, require
from spacy_distil.run_directory import RunDirectory

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Distilled:
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
    overwrite: bool,
) -> Distilled:
    """See `distil_encoder`."""
    settings = load_config(config, overrides)
    directory = RunDirectory(
        output,
        settings="distil.cfg",
        results="distil.json",
        kept=frozenset({"cache"}),
        free=FREE_ON_RESUME,
    )
    if not (resume or overwrite):
        directory.refuse_run()
    accelerator = _accelerator(gpu_id, settings.training, output)
    device = _describe(accelerator)
    msg.info(f"Training on {device}, mixed precision: {accelerator.mixed_precision}")

    teacher = load_teacher(settings.teacher.name, revision=settings.teacher.revision)
    layers = choose_layers(
        settings.student.layers, settings.student.n_layers, available=teacher.n_layers
    )
    _check_head(settings, teacher)
    plans = plan_corpus(settings.corpus, teacher)
    inputs = {
        "teacher": teacher.fingerprint,
        **{plan.setting: plan.fingerprint for plan in plans.values()},
    }
    earlier = directory.settle(settings.source, inputs, resume=resume, overwrite=overwrite)
    if earlier and earlier.get("finished"):
        msg.good(f"Finished already: {output}")
        return _distilled(output, earlier)
    if earlier is not None:
        msg.info(f"Resuming the run in {output}")
    elif resume:
        msg.info(f"Nothing to resume in {output}: starting")

    main = accelerator.is_main_process
    if main:
        directory.write_settings(settings.source)
    cache = Path(settings.corpus.cache) if settings.corpus.cache else output / "cache"
    with accelerator.main_process_first():
        corpus = load_corpus(plans, settings.corpus, teacher, cache=cache)
    if main:
        directory.write_results({"finished": False, "inputs": inputs})
    if not len(corpus.held_out):
        msg.warn("Nothing is held out: set corpus.dev or corpus.dev_fraction to see scores")

    student = make_student(teacher, layers)
    teacher.model.to(accelerator.device)
    for objective in settings.objectives.values():
        objective.check(teacher.model.config, student.config)
    msg.info(
        f"Student: layers {', '.join(map(str, layers))} of {teacher.n_layers}, "
        f"{student.num_parameters():,} of {teacher.model.num_parameters():,} parameters. "
        f"Blocks: {len(corpus.train):,} to train on, {len(corpus.held_out):,} held out"
    )
    accelerator.init_trackers("distil")
    scores = train(
        Distiller(teacher.model, student, settings.objectives),
        corpus,
        settings,
        masking=Masking.for_tokenizer(teacher.tokenizer, settings.mask_probability),
        pad_id=int(teacher.tokenizer.pad_token_id),
        accelerator=accelerator,
        output=output,
    )
    accelerator.end_training()
    results = {
        "finished": True,
        "inputs": inputs,
        "steps": count_steps(settings.training, corpus.train, accelerator),
        "scores": scores,
        "device": device,
    }
    if main:
        _save(student, teacher, corpus, settings, layers, results, directory)
    accelerator.wait_for_everyone()
    msg.good(f"Student saved to {output}")
    return _distilled(output, results)


def _accelerator(gpu_id: int | None, settings: TrainingSettings, output: Path) -> Accelerator:
    """The devices to train on. gpu_id: see `distil_encoder`."""
    if gpu_id is not None and gpu_id >= 0:
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
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        # accelerate keeps one state per process; a run must not inherit that of an earlier one.
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
    return Accelerator(
        cpu=cpu,
        mixed_precision=precision,
        gradient_accumulation_steps=settings.accumulate,
        step_scheduler_with_optimizer=False,
        log_with="tensorboard" if settings.tensorboard else None,
        project_config=ProjectConfiguration(str(output), logging_dir=str(output / "logs")),
    )


def _describe(accelerator: Accelerator) -> str:
    device = accelerator.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()
    several = f"{accelerator.num_processes} x " if accelerator.num_processes > 1 else ""
    return f"{several}{name}"


def _check_head(settings: DistilConfig, teacher: Teacher) -> None:
    needy = [name for name, o in settings.objectives.items() if o.needs.mlm_head]
    if teacher.has_head or not needy:
        return
    switches = " ".join(f"--objectives.{name}.weight 0" for name in needy)
    raise ConfigError(
        f"the teacher {teacher.name!r} has no masked-LM head, which these objectives need: "
        f"{', '.join(needy)}.\nEither switch them off and learn its hidden states only:\n"
        f"  {switches}\nor take a teacher that has the head, such as bert-base-uncased:\n"
        f"  --teacher.name bert-base-uncased"
    )


def _distilled(output: Path, results: Mapping[str, Any]) -> Distilled:
    return Distilled(output, results["steps"], results["scores"], results["device"])


def _save(
    student: PreTrainedModel,
    teacher: Teacher,
    corpus: Corpus,
    settings: DistilConfig,
    layers: list[int],
    results: Mapping[str, Any],
    directory: RunDirectory,
) -> None:
    """Write the model, then the results that declare the run finished, then drop checkpoints."""
    output = directory.path
    unfinished = output / ".model"
    shutil.rmtree(unfinished, ignore_errors=True)
    with quiet_transformers():
        student.save_pretrained(unfinished)
        teacher.tokenizer.save_pretrained(unfinished)
    card = model_card(
        settings,
        layers=layers,
        teacher_layers=teacher.n_layers,
        n_parameters=student.num_parameters(),
        sources=corpus.sources,
        steps=results["steps"],
        scores=results["scores"],
        device=results["device"],
    )
    (unfinished / "README.md").write_text(card, encoding="utf-8")
    for path in sorted(unfinished.iterdir()):
        path.replace(output / path.name)
    unfinished.rmdir()
    directory.write_results(results)
    if settings.training.remove_checkpoints:
        shutil.rmtree(output / "checkpoints", ignore_errors=True)
