"""The model card of a distilled encoder: its origin, its training and its scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from wasabi import MarkdownRenderer

from spacy_distil.distillation.encoder.config import EncoderDistilConfig
from spacy_distil.distillation.encoder.corpus import Corpus, LanguageShare, Source
from spacy_distil.distillation.encoder.evaluation import scores_by_language
from spacy_distil.distillation.encoder.steps import plan_stages
from spacy_distil.students.card import (
    Cells,
    describe_parts,
    markdown_table,
    metadata_block,
    shapes_table,
    short_name,
)
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
    corpus: Corpus,
    steps: int,
    scores: Mapping[str, float],
    device: str,
) -> str:
    """Write the README.md of a student, with the metadata block that the Hugging Face hub reads.

    The same run writes the same card.

    licence: the teacher's.
    n_parameters: the student's.
    scores: see `evaluation.evaluate`.
    """
    name = config.teacher.name
    short = short_name(name)
    if any(objective.needs.teacher for objective in config.objectives.values()):
        title = f"{len(shape.layers)}-layer student of {short}"
        origin = f"Distilled with spacy-distil from `{name}`"
        tags = ["distillation", "spacy-distil"]
    else:
        title = f"{short}, adapted"
        origin = f"`{name}`, trained further on text by masked language modelling with spacy-distil"
        tags = ["spacy-distil"]
    card = MarkdownRenderer()
    card.add(metadata_block(name, licence, tags=tags))
    card.add(card.title(1, title))
    card.add(f"{origin}. {_describe_start(config, teacher, shape)}")
    # The teacher's model has the student's vocabulary.
    n_pieces = int(teacher.model.config.vocab_size)
    card.add(shapes_table(teacher, shape, n_parameters, n_pieces))
    card.add(
        f"The teacher is a model of type {teacher.model.config.model_type}, revision "
        f"{config.teacher.revision or 'not given'}, fingerprint `{teacher.fingerprint}`"
    )
    card.add(card.title(2, "Licence"))
    card.add(licence.describe())
    card.add(card.title(2, "Data"))
    card.add(markdown_table(("", "file", "bytes"), _files(corpus.sources), numbers=1))
    card.add(
        card.list(
            f"{kind}: {source.blocks:,} blocks of up to {config.corpus.block_size} pieces, "
            f"{source.pieces:,} pieces; fingerprint `{source.fingerprint}`"
            for kind, source in corpus.sources.items()
        )
    )
    shares = corpus.train.shares()
    if len(shares) > 1:
        card.add(
            f"A language with n blocks was read in proportion to n to the power of "
            f"{config.corpus.alpha:g}:"
        )
        header = ("language", "blocks to train on", "share of an epoch, %", "times in an epoch")
        card.add(markdown_table(header, _shares(shares), numbers=3))
    card.add(card.title(2, "Objectives"))
    card.add(markdown_table(("", "objective", "weight", "settings"), _objectives(config)))
    card.add(f"Share of pieces masked: {config.mask_probability:g}")
    card.add(card.title(2, "Training"))
    header = ("stage", "objectives", "steps", "learn rate")
    card.add(markdown_table(header, _stages(config, steps), numbers=2))
    card.add(
        f"{steps:,} steps of {_describe_setting(config.training.batch_size)} blocks on {device}, "
        f"seed {config.training.seed}. Every setting: `distil.cfg`. Losses on the way: `log.jsonl`."
    )
    card.add(card.title(2, "Held-out scores"))
    means, *by_language = scores_by_language(scores).items()
    no_scores = "Nothing was held out."
    card.add(markdown_table(("", ""), _scores(means[1]), numbers=1) if scores else no_scores)
    if by_language:
        card.add("These are means in which each language counts the same:")
        names = ("language", *(row[0] for row in _scores(by_language[0][1])))
        rows = [(name, *(row[1] for row in _scores(own))) for name, own in by_language]
        card.add(markdown_table(names, rows, numbers=len(names) - 1))
    return f"{card.text}\n"


def _describe_start(config: EncoderDistilConfig, teacher: Teacher, shape: StudentShape) -> str:
    if config.student.start == "random":
        return "It started from random weights."
    is_whole = (
        len(shape.layers) == shape.teacher.layers
        and not (shape.cuts or shape.is_albert)
        and teacher.model.config.vocab_size == teacher.n_pieces
    )
    start = f"It started from its {describe_parts(shape)}."
    if is_whole:
        start = "It started as the whole of it."
    needs_head = any(objective.needs.student_head for objective in config.objectives.values())
    keeps_head = teacher.has_mlm_head and shape.embedding_size is None
    return start if keeps_head or not needs_head else f"{start} Its masked-LM head is new."


def _files(sources: Mapping[str, Source]) -> list[Cells]:
    return [
        (kind, path, f"{size:,}") for kind, source in sources.items() for path, size in source.files
    ]


def _shares(shares: Sequence[LanguageShare]) -> list[Cells]:
    return [
        (s.language, f"{s.blocks:,}", f"{100 * s.share:.1f}", f"{s.repeats:.3g}") for s in shares
    ]


def _objectives(config: EncoderDistilConfig) -> list[Cells]:
    return [
        (
            name,
            block["@distil_objectives"],
            _describe_setting(block.get("weight", "default")),
            ", ".join(
                f"{key} {_describe_setting(value)}"
                for key, value in block.items()
                if not key.startswith("@") and key != "weight"
            ),
        )
        for name, block in config.source["objectives"].items()
        if name in config.objectives
    ]


def _describe_setting(value: Any) -> str:
    """A schedule by its name and arguments; any other value as it is."""
    if not isinstance(value, Mapping):
        return str(value)
    names = [str(v) for k, v in value.items() if k.startswith("@")]
    arguments = [f"{k} {v}" for k, v in value.items() if not k.startswith("@")]
    return f"{' '.join(names)} ({', '.join(arguments)})"


def _stages(config: EncoderDistilConfig, steps: int) -> list[Cells]:
    return [
        (s.name, ", ".join(s.objectives), f"{s.end - s.start:,}", f"{s.learn_rate:g}")
        for s in plan_stages(config, steps)
    ]


def _scores(scores: Mapping[str, float]) -> list[Cells]:
    rows: list[Cells] = []
    for name, score in scores.items():
        if name.endswith("_accuracy"):
            model = name.removesuffix("_accuracy")
            rows.append((f"masked-LM accuracy of the {model}, %", f"{100 * score:.2f}"))
        else:
            rows.append((f"loss: {name}", f"{score:.4f}"))
    return rows
