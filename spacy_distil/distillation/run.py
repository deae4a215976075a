"""A distillation run, from its config to the saved student."""

from __future__ import annotations

import json
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
from confection import Config
from wasabi import msg

from spacy_distil.distillation.batches import Masking
from spacy_distil.distillation.card import model_card
from spacy_distil.distillation.config import (
    DistilConfig,
    TrainingSettings,
    changed_settings,
    load_config,
)
from spacy_distil.distillation.corpus import Corpus, load_corpus, plan_corpus
from spacy_distil.distillation.distiller import Distiller
from spacy_distil.distillation.loop import count_steps, train
from spacy_distil.distillation.students import choose_layers, make_student
from spacy_distil.distillation.teachers import Teacher, load_teacher, quiet_transformers
from spacy_distil.engines.precision import has_native_bf16
from spacy_distil.errors import ConfigError, require

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# What a run writes beside the model: its settings, and its inputs' fingerprints and its results.
SETTINGS, RESULTS = "distil.cfg", "distil.json"
# The settings mark the directory as a run's until the next run has replaced them.
KEPT_WHEN_OVERWRITING = {"cache", SETTINGS}


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
    earlier = _earlier_run(output)
    if earlier and not (resume or overwrite):
        raise ConfigError(
            f"output directory {output} is not empty. Go on with the run in it with --resume, "
            f"replace it with --overwrite, or give another directory"
        )
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
    if earlier:
        changed = _changes(output, settings, inputs)
        if resume and not changed:
            if (results := _read_results(output)).get("finished"):
                msg.good(f"Finished already: {output}")
                return _distilled(output, results)
            msg.info(f"Resuming the run in {output}")
        elif overwrite:
            msg.info(f"Replacing the run in {output}")
            _clear(output)
        else:
            raise ConfigError(
                f"the run in {output} cannot be resumed, because these have changed: "
                f"{', '.join(changed)}. Put them back, give another directory, or replace the run "
                f"with --overwrite"
            )
    elif resume:
        msg.info(f"Nothing to resume in {output}: starting")

    main = accelerator.is_main_process
    if main:
        output.mkdir(parents=True, exist_ok=True)
        _write(output / SETTINGS, settings.source.to_str())
    cache = Path(settings.corpus.cache) if settings.corpus.cache else output / "cache"
    with accelerator.main_process_first():
        corpus = load_corpus(plans, settings.corpus, teacher, cache=cache)
    if main:
        _write(output / RESULTS, _to_json({"finished": False, "inputs": inputs}))
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
        _save(student, teacher, corpus, settings, layers, results, output)
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


def _earlier_run(output: Path) -> bool:
    """Whether a run has written into `output`; whatever else lies there is not touched."""
    if not output.exists():
        return False
    if not output.is_dir():
        raise ConfigError(f"output {output} is a file; it must be a directory, or not exist yet")
    names = {path.name for path in output.iterdir()}
    if names and SETTINGS not in names:
        raise ConfigError(
            f"output directory {output} holds files, but no distillation run "
            f"({', '.join(sorted(names)[:5])}). Give an empty or a new directory"
        )
    return bool(names)


def _changes(output: Path, settings: DistilConfig, inputs: Mapping[str, str]) -> list[str]:
    """What of the run in `output` has changed: settings, or the contents of teacher and corpus."""
    before = Config().from_disk(output / SETTINGS)
    changed = changed_settings(before, settings.source)
    recorded = _read_results(output).get("inputs", inputs)
    changed += [f"contents of {k}" for k in inputs if recorded.get(k) != inputs[k]]
    return changed


def _clear(output: Path) -> None:
    """Remove an earlier run. At whatever point this is killed, what is left can be told apart."""
    (output / RESULTS).unlink(missing_ok=True)
    for path in output.iterdir():
        if path.name in KEPT_WHEN_OVERWRITING:
            continue
        if path.is_dir():
            shutil.rmtree(path.rename(output / f".removed-{path.name}"))
        else:
            path.unlink()


def _read_results(output: Path) -> dict[str, Any]:
    path = output / RESULTS
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _to_json(results: Mapping[str, Any]) -> str:
    return json.dumps(results, indent=2) + "\n"


def _write(path: Path, text: str) -> None:
    """Write a file that is there whole or not at all."""
    unfinished = path.with_name(f".{path.name}")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)


def _distilled(output: Path, results: Mapping[str, Any]) -> Distilled:
    return Distilled(output, results["steps"], results["scores"], results["device"])


def _save(
    student: PreTrainedModel,
    teacher: Teacher,
    corpus: Corpus,
    settings: DistilConfig,
    layers: list[int],
    results: Mapping[str, Any],
    output: Path,
) -> None:
    """Write the model, then the results that declare the run finished, then drop checkpoints."""
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
    _write(output / RESULTS, _to_json(results))
    if settings.training.remove_checkpoints:
        shutil.rmtree(output / "checkpoints", ignore_errors=True)
