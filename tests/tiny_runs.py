"""Runs and commands on tiny encoders, as the children of campaigns do them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import spacy
from spacy.training import Example
from thinc.api import Config, fix_random_seed

from spacy_distil.cli.configs import adapt_config
from spacy_distil.distillation import distil_encoder, distil_pipeline
from spacy_distil.distillation.pipeline.cache import layout
from spacy_distil.export.convert import convert
from spacy_distil.export.quantize import quantize
from spacy_distil.students.build import build_student
from tests.distillation.pipeline.util import (
    annotated_examples,
    student_config,
    train_pipeline,
    write_corpus,
)
from tests.teachers import write_sample, write_teacher
from tests.util import adam, head_config, write_encoder

PIPES = ("tagger", "ner")
SHARD_TOKENS = 30  # so that a small corpus has several shards


def prepare_encoder(directory: Path) -> None:
    """A teacher encoder and text."""
    write_teacher(directory / "bert", "bert", head=True)
    write_sample(directory / "text.txt")


def encoder_settings(directory: Path, **training: Any) -> dict[str, Any]:
    """The config of a run of some steps, with dropout, on what `prepare_encoder` wrote."""
    objectives = {"cosine": "Cosine", "masked_lm": "MaskedLM"}
    return {
        "teacher": {"name": str(directory / "bert")},
        "student": {"n_layers": 2},
        "corpus": {
            "train": str(directory / "text.txt"),
            "block_size": 24,
            "dev_fraction": 0.1,
        },
        "objectives": {
            name: {"@distil_objectives": f"spacy-distil.{kind}.v1"}
            for name, kind in objectives.items()
        },
        "training": {
            "max_steps": 12,
            "batch_size": 8,
            "micro_batch": 4,
            "dropout": 0.1,
            "checkpoint_frequency": 2,
            "eval_frequency": 4,
            "log_frequency": 3,
            "mixed_precision": "no",
            "tensorboard": False,
            **training,
        },
    }


def run_encoder(directory: Path, output: Path, options: Mapping[str, Any]) -> None:
    """options: arguments of `distil_encoder`, and "training" for settings of that section."""
    options = dict(options)
    settings = encoder_settings(directory, **options.pop("training", {}))
    distil_encoder(settings, output, gpu_id=-1, **options)


def prepare_pipeline(directory: Path) -> None:
    """A teacher pipeline, a corpus, and a student's config."""
    encoder = write_encoder(directory / "encoder", "bert", dropout=0.1)
    teacher = train_pipeline(encoder, PIPES, steps=5)
    teacher.to_disk(directory / "teacher")
    write_corpus(directory, teacher)
    config = student_config(encoder, directory, PIPES)
    # The score rises until step 9, and is lower at step 12, the last one.
    config["distillation"]["student"] = {"start": "config"}
    config["training"]["score_weights"] = {"tag_acc": 1.0}
    config["training"]["eval_frequency"] = 3
    config["training"]["optimizer"]["use_averages"] = True
    config.to_disk(directory / "student.cfg")


def run_pipeline(directory: Path, output: Path, options: Mapping[str, Any]) -> None:
    """options: arguments of `distil_pipeline`."""
    layout.SHARD_TOKENS = SHARD_TOKENS
    config = Config().from_disk(directory / "student.cfg", interpolate=False)
    distil_pipeline(str(directory / "teacher"), config, output, **options)


def save_pipeline(directory: Path, seed: int, output: Path) -> None:
    """Save a tagger on an encoder whose weights depend on the seed, by spaCy alone."""
    nlp = spacy.load(directory / "teacher")
    fix_random_seed(seed)
    optimizer, examples = adam(5e-3 * (1 + seed)), annotated_examples(nlp)
    nlp.update([Example(nlp.make_doc(eg.text), eg.reference) for eg in examples], sgd=optimizer)
    nlp.to_disk(output)


def prepare_interop(directory: Path) -> None:
    """A pipeline of spacy-transformers."""
    nlp = spacy.blank("xx")
    model = {
        "@architectures": "spacy-transformers.TransformerModel.v3",
        "name": str(directory / "encoder"),
        "get_spans": {"@span_getters": "spacy-transformers.doc_spans.v1"},
        "tokenizer_config": {"use_fast": True},
    }
    nlp.add_pipe("transformer", config={"model": model})
    listener = {
        "@architectures": "spacy-transformers.TransformerListener.v1",
        "pooling": {"@layers": "reduce_mean.v1"},
    }
    nlp.add_pipe("tagger", config=head_config("tagger", listener))
    examples = annotated_examples(nlp)
    nlp.initialize(lambda: examples)
    nlp.to_disk(directory / "trf")


def replace(name: str, directory: Path, output: Path, old: bool) -> None:
    """Run a command that replaces a result.

    name: "quantize", "convert", "student", "adapt", or "to_disk" for spaCy's `nlp.to_disk`.
    directory: has what the functions `prepare_...` write.
    old: run it as it made the result that the command replaces.
    """
    if name == "quantize":
        quantize(
            directory / "teacher",
            output,
            precision="fp32" if old else "int8",
            min_agreement=0.0,
            force=True,
        )
    elif name == "convert":
        convert(directory / "trf", output, window=32 if old else 40, min_agreement=0.0, force=True)
    elif name == "student":
        build_student(str(directory / "bert"), output, n_layers=2, threads=1, log=str)
    elif name == "adapt":
        config = Config(adapt_config(str(directory / "bert"), [directory / "text.txt"]))
        overrides = {
            "training.max_steps": 4 if old else 3,
            "training.epochs": None,
            "training.batch_size": 8,
            "training.micro_batch": 4,
            "training.tensorboard": False,
            "training.mixed_precision": "no",
            "corpus.block_size": 24,
        }
        distil_encoder(config, output, overrides=overrides, gpu_id=-1, resume=True, force=True)
    else:
        save_pipeline(directory, 1 if old else 2, output)
