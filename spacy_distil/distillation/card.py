"""The model card: what a student was made of, and how well it follows its teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from spacy_distil.distillation.config import DistilConfig
from spacy_distil.distillation.corpus import Source


def model_card(
    config: DistilConfig,
    *,
    layers: Sequence[int],
    teacher_layers: int,
    n_parameters: int,
    sources: Mapping[str, Source],
    steps: int,
    scores: Mapping[str, float],
    device: str,
) -> str:
    """README.md of a student, with the metadata block that the Hugging Face hub reads.

    layers: of the teacher, that the student started from.
    scores: see `evaluation.evaluate`.
    """
    teacher = config.teacher.name
    is_local = Path(teacher).is_dir()
    metadata = ["library_name: transformers", "tags:", "- distillation", "- spacy-distil"]
    if not is_local:
        metadata.append(f"base_model: {teacher}")
    files = [
        f"| {name} | {path} | {size:,} |"
        for name, source in sources.items()
        for path, size in source.files
    ]
    blocks = [
        f"- {name}: {source.blocks:,} blocks of up to {config.corpus.block_size} pieces, "
        f"{source.pieces:,} pieces; fingerprint `{source.fingerprint}`"
        for name, source in sources.items()
    ]
    objectives = [
        f"| {name} | {block['@distil_objectives']} | {block.get('weight', 'default')} | "
        + ", ".join(f"{k} {v}" for k, v in block.items() if k[0] != "@" and k != "weight")
        + " |"
        for name, block in config.source["objectives"].items()
        if name in config.objectives
    ]
    training = config.training
    return "\n".join(
        [
            "---",
            *metadata,
            "---",
            "",
            f"# {len(layers)}-layer student of {Path(teacher).name if is_local else teacher}",
            "",
            f"Distilled with spacy-distil from `{teacher}` ({teacher_layers} layers): started from "
            f"its layers {', '.join(map(str, layers))} (0 is the lowest), "
            f"{n_parameters:,} parameters.",
            "",
            "## Data",
            "",
            "| | file | bytes |",
            "|---|---|---:|",
            *files,
            "",
            *blocks,
            "",
            "## Objectives",
            "",
            "| | objective | weight | settings |",
            "|---|---|---:|---|",
            *objectives,
            "",
            f"Share of pieces masked: {config.mask_probability:g}",
            "",
            "## Training",
            "",
            f"{steps:,} steps of {training.batch_size * training.accumulate} blocks on {device}, "
            f"learn rate {training.learn_rate:g}, seed {training.seed}. Every setting: "
            f"`distil.cfg`. Losses on the way: `log.jsonl`.",
            "",
            "## Held-out scores",
            "",
            *_score_table(scores),
            "",
        ]
    )


def _score_table(scores: Mapping[str, float]) -> list[str]:
    if not scores:
        return ["Nothing was held out."]
    rows = []
    for name, score in scores.items():
        accuracy = name.endswith("_accuracy")
        label = f"masked-LM accuracy of the {name.removesuffix('_accuracy')}, %"
        rows.append(
            f"| {label} | {100 * score:.2f} |" if accuracy else f"| loss: {name} | {score:.4f} |"
        )
    return ["| | |", "|---|---:|", *rows]
