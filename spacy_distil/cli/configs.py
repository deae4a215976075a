"""Make the configs of `init-config` and `adapt` from the templates beside this file."""

from __future__ import annotations

import json
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, get_args

import spacy
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from spacy.util import combine_score_weights, get_lang_class
from thinc.api import Config

from spacy_distil.cli.corpus_size import count_tokens, estimate_pieces, estimate_words
from spacy_distil.cli.teacher_pipes import TeacherPipes
from spacy_distil.engines.files import CONFIG, longest_window, parse_config
from spacy_distil.errors import ConfigError
from spacy_distil.runs.schedules import (
    EncoderSchedule,
    TrainingSchedule,
    fit_encoder,
    fit_training,
)
from spacy_distil.text.languages import check_language

Optimize = Literal["efficiency", "accuracy"]

# Factories of pipes that listen to the encoder.
PIPES = (
    "tagger",
    "morphologizer",
    "trainable_lemmatizer",
    "senter",
    "parser",
    "ner",
    "distil_ner",
    "spancat",
    "textcat",
    "textcat_multilabel",
    "distil_vectors",
    "distil_pair",
    "distil_qa",
)
# Pipes that read texts in pairs, with the reader of their own files.
PAIR_READERS = {
    "distil_vectors": "spacy-distil.Pairs.v1",
    "distil_pair": "spacy-distil.LabelledPairs.v1",
    "distil_qa": "spacy-distil.Squad.v1",
}
# Pairs of them that write the same annotation.
RIVALS = (("ner", "distil_ner"), ("textcat", "textcat_multilabel"))
# The defaults of `spacy init config`.
DEFAULT_PIPES = ("tagger", "parser", "ner")
DEFAULT_TEACHER = "bert-base-uncased"

# Small encoders by language, and one of 104 languages for all others.
SMALL_ENCODERS = {"en": "distilbert-base-uncased"}
SMALL_MULTILINGUAL = "distilbert-base-multilingual-cased"

# Settings of the model of a transition-based parser, by factory. They are its state and its shape.
TRANSITIONS: dict[str, dict[str, Any]] = {
    "parser": {
        "state_type": "parser",
        "extra_state_tokens": False,
        "hidden_width": 128,
        "maxout_pieces": 3,
        "use_upper": False,
    },
    "ner": {
        "state_type": "ner",
        "extra_state_tokens": False,
        "hidden_width": 64,
        "maxout_pieces": 2,
        "use_upper": False,
    },
}

COMMAND = ("python", "-m", "spacy", "distil", "init-config")

# Schedules for a corpus of unknown size
STEPS = 1600
BATCH_WORDS = {"cpu": 1000, "gpu": 4000}
BLOCK_SIZE = 512
ENCODER_SCHEDULE = EncoderSchedule(batch_size=128, epochs=3, log_frequency=20, eval_frequency=200)


def encoder_config(teacher: str = DEFAULT_TEACHER, *, corpus: Sequence[Path] = ()) -> str:
    """Write a config of `spacy distil encoder` with every setting, as text with comments.

    teacher: directory or hub name of the teacher encoder.
    corpus: files or directories of text. Epochs, size of a step and evaluations fit them.
    """
    schedule = ENCODER_SCHEDULE
    if corpus:
        n_blocks = estimate_pieces([*corpus]) // BLOCK_SIZE
        schedule = fit_encoder(n_blocks, batch_size=schedule.batch_size)
    paths = [str(path) for path in corpus]
    return render("encoder", teacher=teacher, corpus=paths, schedule=schedule)


def adapt_config(teacher: str, corpus: Sequence[str | Path]) -> dict[str, Any]:
    """Make the config of `spacy distil adapt`, for `distil_encoder`.

    teacher: directory or hub name of the encoder.
    corpus: files or directories of text.
    """
    text = render("adapt", teacher=teacher, corpus=[str(path) for path in corpus])
    return Config().from_str(text, interpolate=False)


def training_config(
    *,
    lang: str = "en",
    pipes: Sequence[str] = DEFAULT_PIPES,
    encoder: str | None = None,
    optimize: Optimize = "efficiency",
    gpu: bool = False,
    corpus: Path | None = None,
) -> str:
    """Write a config of `spacy train` with every setting, as text with comments.

    lang: two-letter code of the language.
    pipes: some of PIPES, in the order of the pipeline. Each pipe is named as its factory.
    encoder: directory or hub name; None for one that suits the language.
    optimize: "efficiency" for a small encoder, a student; "accuracy" for a full-size one.
    gpu: whether the pipeline is trained on a GPU.
    corpus: training documents, .spacy. Steps, batches, warm-up and evaluations fit them.
    Raises ConfigError if a language or a pipe is unknown, or pipes exclude each other.
    """
    check_pipes({name: name for name in pipes}, pipes)
    if optimize not in get_args(Optimize):
        raise ConfigError(
            f"optimize = {optimize!r}: expected one of {', '.join(get_args(Optimize))}."
        )
    code, encoder = resolve_encoder(lang, encoder, optimize)
    options = ["--lang", code, "--pipeline", ",".join(pipes), "--encoder", encoder]
    options += ["--optimize", optimize, *schedule_options(gpu, corpus)]
    return render(
        "train",
        command=shlex.join([*COMMAND, "train", *options]),
        distillation=False,
        **pipeline_settings(code, {name: name for name in pipes}, encoder, optimize, gpu),
        **schedule_settings(gpu, corpus),
    )


def pipeline_config(
    *,
    lang: str | None = None,
    pipes: Sequence[str] | None = None,
    encoder: str | None = None,
    gpu: bool = False,
    teacher: TeacherPipes | None = None,
    corpus: Path | None = None,
    text: Path | None = None,
) -> str:
    """Write a config of `spacy distil pipeline` with every setting, as text with comments.

    lang: two-letter code of the language; None for the teacher's, or English without a teacher. If
        it is given, `teacher` was read for it.
    pipes: names of the student's pipes, in the order of the pipeline. A pipe of the teacher gives a
        pipe of the same kind; any other name is one of PIPES. None for all of the teacher's pipes,
        or for DEFAULT_PIPES without a teacher.
    encoder: directory or hub name, for a student that does not start from the teacher's layers;
        None for one that suits the language.
    gpu: whether the student is trained on a GPU.
    teacher: the pipes of the teacher, see `read_teacher_pipes`. Its encoder, if it is one of ours,
        sets window, overlap, pooling and pieces_from. Its parser and ner set the shape of the
        student's.
    corpus, text: training documents, .spacy, and text without annotation. Steps, batches, warm-up
        and evaluations fit both together.
    Raises ConfigError if a language or a pipe is unknown, or pipes exclude each other.
    """
    known = teacher.pipes if teacher else {}
    rules = teacher.rules if teacher else {}
    if pipes is None:
        pipes = teacher.names if teacher else DEFAULT_PIPES
    names = list(pipes)
    factories = {name: known.get(name, name) for name in names if name not in rules}
    check_pipes(factories, names)
    lang = lang or (teacher.lang if teacher else "en")
    code, encoder = resolve_encoder(lang, encoder, "efficiency")
    options = ["--teacher", teacher.name] if teacher else []
    options += ["--lang", code, "--pipeline", ",".join(names), "--encoder", encoder]
    copied = {name: factory for name, factory in rules.items() if name in names}
    settings = pipeline_settings(code, factories, encoder, "efficiency", gpu)
    if teacher:
        pooling = teacher.encoding.get("doc_pooling") or settings["doc_pooling"]
        settings |= {**teacher.encoding, "doc_pooling": pooling}
        for name, shape in settings["shapes"].items():
            shape.update(teacher.transitions(name, shape))
        settings |= fit_windows(encoder, settings["window"], settings["overlap"])
        settings |= {
            "teacher": teacher.name,
            "from_teacher": bool(teacher.encoding),
            "pipeline": ["transformer", *names],
            "copied": list(copied),
            "schemes": teacher.schemes,
            "text_heads": teacher.text_heads(),
            "vector_heads": teacher.vector_heads(),
            "pair_heads": teacher.pair_heads(),
            "qa_pipes": teacher.qa_pipes(),
            "tokenizer": block("nlp.tokenizer", teacher.tokenizer),
            "initialize_tokenizer": block("initialize.tokenizer", teacher.initialize_tokenizer),
            "score_weights": score_weights(list(factories.values()), copied.values()),
        }
    return render(
        "pipeline",
        command=shlex.join([*COMMAND, "pipeline", *options, *schedule_options(gpu, corpus, text)]),
        distillation=True,
        **settings,
        **schedule_settings(gpu, corpus, text),
    )


def render(name: str, **variables: Any) -> str:
    """Fill in a template."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["json"] = json.dumps
    return environment.get_template(f"{name}.jinja").render(**variables)


def schedule_options(gpu: bool, corpus: Path | None, text: Path | None = None) -> list[str]:
    """The options of `init-config` that `schedule_settings` reads."""
    options = ["--gpu" if gpu else "--cpu"]
    for option, path in {"--corpus": corpus, "--text": text}.items():
        options += [option, str(path)] if path else []
    return options


def schedule_settings(
    gpu: bool, corpus: Path | None = None, text: Path | None = None
) -> dict[str, Any]:
    """The variables of templates that say how long a pipeline trains, and on which files."""
    batch_words = BATCH_WORDS["gpu" if gpu else "cpu"]
    schedule = TrainingSchedule(batch_words, STEPS, warmup=100, eval_frequency=200)
    n_words = None
    if corpus or text:
        n_words = (count_tokens(corpus) if corpus else 0) + (estimate_words(text) if text else 0)
        schedule = fit_training(n_words, batch_words=batch_words)
    return {
        **asdict(schedule),
        "n_words": n_words,
        "passes": n_words and describe_passes(schedule.steps * schedule.words / n_words),
        "train_path": corpus and str(corpus),
        "text_path": text and str(text),
    }


def describe_passes(passes: float) -> str:
    """Write a number of passes in words, such as "8 passes"."""
    number = f"{passes:.1f}".removesuffix(".0") if passes < 10 else f"{passes:.0f}"
    return f"{number} pass{'es' * (number != '1')}"


def pipeline_settings(
    lang: str, factories: Mapping[str, str], encoder: str, optimize: Optimize, gpu: bool
) -> dict[str, Any]:
    """The variables that templates of pipelines share.

    factories: of the trained pipes, by name, in the order of the pipeline.
    """
    defaults = get_lang_class(lang).default_config
    # Short windows are faster on a CPU. But a question should see all of its paragraph.
    window = None if gpu or "distil_qa" in factories.values() else 192
    reader = PAIR_READERS.get(*factories.values()) if len(factories) == 1 else None
    return {
        "lang": lang,
        "pipes": factories,
        "pipeline": ["transformer", *factories],
        "shapes": {
            name: dict(TRANSITIONS[factory])
            for name, factory in factories.items()
            if factory in TRANSITIONS
        },
        "copied": [],
        "schemes": {},
        "text_heads": {},
        "vector_heads": {},
        "doc_pooling": "mean" if "distil_vectors" in factories.values() else None,
        # Pairs of texts are no annotated documents. For several kinds of pipes, these have all.
        "reader": reader,
        "suffix": {None: ".spacy", "spacy-distil.Squad.v1": ".json"}.get(reader, ".jsonl"),
        "pair_heads": {},
        "qa_pipes": {},
        "from_teacher": False,
        "encoder": encoder,
        "optimize": optimize,
        "gpu": gpu,
        **fit_windows(encoder, window, 32 if gpu else 16),
        "pooling": "mean",
        "pieces_from": "text",
        "score_weights": score_weights(list(factories.values())),
        "tokenizer": block("nlp.tokenizer", defaults["nlp"]["tokenizer"]),
        "initialize_tokenizer": block("initialize.tokenizer", defaults["initialize"]["tokenizer"]),
    }


def check_pipes(factories: Mapping[str, str], names: Sequence[str]) -> None:
    """Raise ConfigError if these pipes cannot be a pipeline.

    factories: of the trained pipes, by name.
    names: of all pipes, as the user gave them.
    """
    choice = f"Choose from {', '.join(PIPES)}."
    if not factories:
        raise ConfigError(f"No pipe to train. {choice}")
    for name, factory in factories.items():
        if name in ("transformer", "distil_transformer", "tok2vec"):
            raise ConfigError(
                f"pipeline: leave out {name!r}, every config has the encoder. {choice}"
            )
        if factory not in PIPES:
            raise ConfigError(
                f"pipeline: this command knows no pipe {name!r}; add it to the config by hand. "
                f"{choice}"
            )
        if names.count(name) > 1:
            raise ConfigError(f"pipeline: {name!r} is named twice.")
    for rivals in RIVALS:
        if set(rivals) <= set(factories.values()):
            raise ConfigError(
                f"pipeline: {' and '.join(rivals)} write the same annotation. Choose one of them."
            )


def resolve_encoder(lang: str, encoder: str | None, optimize: Optimize) -> tuple[str, str]:
    """The code of a language, and the encoder or, for None, the default one of the language."""
    code = check_language(lang)
    return code, encoder or default_encoder(code, optimize)


def default_encoder(lang: str, optimize: Optimize) -> str:
    """The hub name of a small encoder, or of the full-size one that spaCy recommends."""
    if optimize == "efficiency":
        return SMALL_ENCODERS.get(lang, SMALL_MULTILINGUAL)
    from spacy.cli.init_config import RECOMMENDATIONS

    recommended = RECOMMENDATIONS.get(lang, RECOMMENDATIONS["__default__"])
    return recommended["transformer"]["accuracy"]["name"]


def fit_windows(encoder: str, window: int | None, overlap: int) -> dict[str, int | None]:
    """Fit windows to an encoder that takes only short ones.

    encoder: directory or hub name. One that is no directory is not looked at.
    window, overlap: settings of `distil_transformer`.
    Raises WeightsError if the directory has a config.json that cannot be right.
    """
    path = Path(encoder) / CONFIG
    config = parse_config({CONFIG: path.read_bytes()}) if path.is_file() else {}
    if "max_position_embeddings" in config:
        longest = longest_window(config)
        if window is None or window > longest:
            window, overlap = window and longest, min(overlap, longest // 4)
    return {"window": window, "overlap": overlap}


def score_weights(factories: Sequence[str], rules: Collection[str] = ()) -> dict[str, float | None]:
    """Even weights for the pipes, divided among the scores of each pipe as spaCy does it.

    rules: factories of pipes that are not trained. Their scores are null: spaCy would count them.
    """
    nlp = spacy.blank("xx")  # knows the factories
    weights: dict[str, float | None] = {}
    for factory in factories:
        for score, weight in (nlp.get_factory_meta(factory).default_score_weights or {}).items():
            # spaCy's tagger would take the weight of pos_acc away from a morphologizer before it.
            if weight or weights.get(score) is None:
                weights[score] = weight
    weights = combine_score_weights([weights])
    for factory in rules:
        if nlp.has_factory(factory):
            for score in nlp.get_factory_meta(factory).default_score_weights or ():
                weights.setdefault(score, None)
    return weights


def block(name: str, settings: dict[str, Any]) -> str:
    """One block of a config, with a heading."""
    *parents, key = name.split(".")
    content: dict[str, Any] = {key: settings}
    for parent in reversed(parents):
        content = {parent: content}
    text = Config(content).to_str(interpolate=False)
    return text[text.index(f"[{name}]") :].strip()
