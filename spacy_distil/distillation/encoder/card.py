"""The model card: what a student was made of, and how well it follows its teacher."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wasabi import MarkdownRenderer

from spacy_distil.distillation.encoder.config import EncoderDistilConfig
from spacy_distil.distillation.encoder.corpus import Source
from spacy_distil.distillation.encoder.steps import plan_stages
from spacy_distil.students.card import Row, card_metadata, compare_shapes, markdown_table
from spacy_distil.students.licence import Licence
from spacy_distil.students.shapes import StudentShape
from spacy_distil.students.teachers import Teacher


def student_card(
    config: EncoderDistilConfig,
    *,
    teacher: Teacher,
    licence: Licence,
    shape: StudentShape,
    n_parameters: int,
    sources: Mapping[str, Source],
    steps: int,
    scores: Mapping[str, float],
    device: str,
) -> str:
    """README.md of a student, with the metadata block that the Hugging Face hub reads.

    It is a function of the run: the same run writes the same card.

    licence: the teacher's.
    n_parameters: the student's.
    scores: see `evaluation.evaluate`.
    """
    name = config.teacher.name
    short = Path(name).name if Path(name).is_dir() else name
    is_distilled = any(objective.needs.teacher for objective in config.objectives.values())
    title = f"{len(shape.layers)}-layer student of {short}" if is_distilled else f"{short}, adapted"
    made = (
        f"Distilled with spacy-distil from `{name}`"
        if is_distilled
        else f"`{name}`, trained further on text by masked language modelling with spacy-distil"
    )
    card = MarkdownRenderer()
    card.add(card_metadata(name, licence, is_distilled))
    card.add(card.title(1, title))
    card.add(f"{made}. {_start(config, teacher, shape)}")
    card.add(
        markdown_table(
            ("", "teacher", "student"), compare_shapes(teacher, shape, n_parameters), numbers=2
        )
    )
    card.add(
        f"The teacher is a model of type {teacher.model.config.model_type}, revision "
        f"{config.teacher.revision or 'not given'}, fingerprint `{teacher.fingerprint}`"
    )
    card.add(card.title(2, "Licence"))
    card.add(licence.describe())
    card.add(card.title(2, "Data"))
    card.add(markdown_table(("", "file", "bytes"), _files(sources), numbers=1))
    card.add(
        card.list(
            f"{kind}: {source.blocks:,} blocks of up to {config.corpus.block_size} pieces, "
            f"{source.pieces:,} pieces; fingerprint `{source.fingerprint}`"
            for kind, source in sources.items()
        )
    )
    card.add(card.title(2, "Objectives"))
    card.add(markdown_table(("", "objective", "weight", "settings"), _objectives(config)))
    card.add(f"Share of pieces masked: {config.mask_probability:g}")
    card.add(card.title(2, "Training"))
    card.add(
        markdown_table(
            ("stage", "objectives", "steps", "learn rate"), _stages(config, steps), numbers=2
        )
    )
    card.add(
        f"{steps:,} steps of {_show(config.training.batch_size)} blocks on {device}, seed "
        f"{config.training.seed}. Every setting: `distil.cfg`. Losses on the way: `log.jsonl`."
    )
    card.add(card.title(2, "Held-out scores"))
    card.add(
        markdown_table(("", ""), _scores(scores), numbers=1) if scores else "Nothing was held out."
    )
    return f"{card.text}\n"


def _start(config: EncoderDistilConfig, teacher: Teacher, shape: StudentShape) -> str:
    if config.student.start == "random":
        return "It started from random weights."
    if len(shape.layers) == shape.teacher.layers and not shape.cuts:
        start = "It started as the whole of it."
    else:
        kept = ", of which the most important parts were kept" if shape.cuts else ""
        layers = ", ".join(map(str, shape.layers))
        start = f"It started from its layers {layers} (0 is the lowest){kept}."
    is_new = any(objective.needs.student_head for objective in config.objectives.values())
    return f"{start} Its masked-LM head is new." if is_new and not teacher.has_mlm_head else start


def _files(sources: Mapping[str, Source]) -> list[Row]:
    return [
        (kind, path, f"{size:,}") for kind, source in sources.items() for path, size in source.files
    ]


def _objectives(config: EncoderDistilConfig) -> list[Row]:
    return [
        (
            name,
            block["@distil_objectives"],
            _show(block.get("weight", "default")),
            ", ".join(f"{k} {_show(v)}" for k, v in block.items() if k[0] != "@" and k != "weight"),
        )
        for name, block in config.source["objectives"].items()
        if name in config.objectives
    ]


def _show(value: Any) -> str:
    """A setting: a schedule by its name and arguments, anything else as it is."""
    if not isinstance(value, Mapping):
        return str(value)
    names = [str(v) for k, v in value.items() if k.startswith("@")]
    arguments = [f"{k} {v}" for k, v in value.items() if not k.startswith("@")]
    return f"{' '.join(names)} ({', '.join(arguments)})"


def _stages(config: EncoderDistilConfig, steps: int) -> list[Row]:
    return [
        (s.name, ", ".join(s.objectives), f"{s.end - s.first:,}", f"{s.learn_rate:g}")
        for s in plan_stages(config, steps)
    ]


def _scores(scores: Mapping[str, float]) -> list[Row]:
    rows: list[Row] = []
    for name, score in scores.items():
        if name.endswith("_accuracy"):
            whose = name.removesuffix("_accuracy")
            rows.append((f"masked-LM accuracy of the {whose}, %", f"{100 * score:.2f}"))
        else:
            rows.append((f"loss: {name}", f"{score:.4f}"))
    return rows
