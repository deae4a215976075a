"""The student pipeline before its first step: labels, encoder and heads from the teacher."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import srsly
from confection import Config
from spacy.errors import Warnings
from spacy.language import Language
from spacy.training import Example
from spacy.util import (
    get_sourced_components,
    load_model_from_config,
    logger,
    resolve_dot_names,
)
from thinc.api import Model, fix_random_seed, set_gpu_allocator
from wasabi import msg

from spacy_distil.component.pipe import DistilTransformerPipe
from spacy_distil.component.shim import EncoderShim, get_encoder
from spacy_distil.distillation.pipeline.config import (
    SECTION,
    SHAPE_SETTINGS,
    PipelineDistilConfig,
    StudentSettings,
    resolve_training,
)
from spacy_distil.distillation.pipeline.corpus import read_annotated, resolve_corpora
from spacy_distil.distillation.pipeline.heads import Pairing, find_pairs
from spacy_distil.distillation.pipeline.heads.pairs import is_learner
from spacy_distil.distillation.pipeline.hidden import find_encoder
from spacy_distil.distillation.pipeline.labels import (
    declared_labels,
    has_annotation,
    kind_of,
    labels_for,
    list_labels,
    output_names,
    unknown_labels,
)
from spacy_distil.distillation.pipeline.language import (
    keep_tokenizer,
    take_language,
    take_state,
    warn_of_rules,
)
from spacy_distil.encoding import read_docs
from spacy_distil.errors import ConfigError
from spacy_distil.students.vocabulary.kinds.base import Text
from spacy_distil.students.vocabulary.settings import VocabularySettings


def make_student(
    settings: PipelineDistilConfig,
    teacher: Language,
    output: Path,
    gpu_id: int,
    read: Callable[[Language, Pairing], list[Example]] | None = None,
) -> tuple[Language, dict[str, str]]:
    """Make and initialize the student.

    output: receives the teacher's labels, and the encoder that the student starts from.
    read: reads the documents that the student is initialized with, and whose annotation shows the
        labels of pipes that have none yet. None reads the training corpus.
    RETURNS (student, start): the latter describes the start of the encoder and of each pipe that
        has a teacher. It is empty if the student starts as its config says.
    """
    config, takes_tokenizer = take_language(settings.spacy, teacher, settings.student.tokenizer)
    starts_from_teacher = _check_start(settings.student, teacher, config)
    vocabulary = settings.student.vocabulary
    texts = read_counted_texts(settings, config, teacher, tokenizer=takes_tokenizer)
    if starts_from_teacher:
        config = start_from_teacher(config, teacher, output / "start", settings.student, texts)
    elif vocabulary.is_pruned:
        config = start_pruned(config, output / "start", texts, vocabulary)
    else:
        # A run that was replaced may have left one.
        shutil.rmtree(output / "start", ignore_errors=True)
    prepare_process(config, gpu_id)
    student = load_model_from_config(config, auto_fill=True)
    if not student.vocab.vectors.size:
        # spaCy leaves the keys there, without rows, of a pipeline that a pipe is sourced from. The
        # first vector that is looked up would fail, and each student would save them.
        student.vocab.vectors.clear()
    frozen = student.config.interpolate()["training"]["frozen_components"]
    pairing = find_pairs(student, teacher, settings.pipes, frozen=frozen)
    pairs = pairing.sources
    new = {
        name: source
        for name, source in pairs.items()
        if "factory" in config["components"][name]  # not from another pipeline
    }
    student.config = save_labels(teacher, student.config, output / "labels", new)
    take_state(student, teacher, tokenizer=takes_tokenizer)
    sourced = get_sourced_components(config.interpolate())
    warn_of_rules(student, teacher, sourced)
    with keep_tokenizer(student) if takes_tokenizer else nullcontext():
        initialize(student, sourced, pairing, read)
    start: dict[str, str] = {}
    if takes_tokenizer:
        start["the tokenizer"] = "the teacher's"
    if starts_from_teacher:
        encoder = find_encoder(student)
        assert encoder is not None
        start[encoder.name] = _describe_encoder(settings.student, get_encoder(encoder.model))
        for name, outcome in copy_heads(student, teacher, new).items():
            start[name] = "the teacher's" if outcome == "copied" else f"random weights: {outcome}"
    return student, start


def _describe_encoder(settings: StudentSettings, encoder: EncoderShim) -> str:
    """Say what the student's encoder starts from."""
    words = f"{encoder.n_layers} of the teacher's layers"
    parts = {"heads": settings.heads, "neurons": settings.ffn, "dimensions": settings.width}
    cut = [f"{n:,} {name}" for name, n in parts.items() if n is not None]
    if cut:
        words += f", cut to {' and '.join(cut)}"
    if settings.share_layers:
        words = f"the lowest of the teacher's layers, applied {encoder.n_layers} times"
    if settings.embedding_size is not None:
        words += f", with embeddings factorized to {settings.embedding_size} dimensions"
    return words


def _check_start(settings: StudentSettings, teacher: Language, config: Config) -> bool:
    """Decide whether the student's encoder starts from the teacher's layers.

    Raises ConfigError if it should, but cannot.
    """
    obstacle = (
        'start = "config" starts from another encoder'
        if settings.start == "config"
        else find_obstacle(teacher, config)
    )
    if obstacle is None:
        return True
    for name in SHAPE_SETTINGS:
        value = getattr(settings, name)
        if value:
            raise ConfigError(
                f"{SECTION}.student.{name} = {srsly.json_dumps(value)}: it changes the teacher's "
                f"layers, but the student does not start from them: {obstacle}. Leave it out"
            )
    if settings.start == "config":
        return False
    if settings.start == "teacher":
        raise ConfigError(
            f'{SECTION}.student.start = "teacher": {obstacle}. Set it to "config", to start '
            "from the encoder that [components] names."
        )
    msg.info(f"The student does not start from the teacher's layers: {obstacle}")
    return False


def prepare_process(config: Config, gpu_id: int) -> None:
    """Set the random seed and the allocator of GPU memory, as `spacy train` does."""
    training = config.interpolate()["training"]
    if training.get("seed") is not None:
        fix_random_seed(training["seed"])
    if gpu_id >= 0 and training.get("gpu_allocator"):
        set_gpu_allocator(training["gpu_allocator"])


def initialize(
    student: Language,
    sourced: Collection[str],
    pairing: Pairing,
    read: Callable[[Language, Pairing], list[Example]] | None = None,
) -> None:
    """Initialize a student, as spaCy's `init_nlp` does.

    sourced: names of the components from other pipelines. They keep their weights.
    pairing: the pipes that learn from the teacher.
    read: see `make_student`.
    Raises CorpusError if the training documents cannot be read, and ConfigError if no annotation
        shows a pipe its labels.
    """
    config = student.config.interpolate()
    training = resolve_training(config)
    frozen = training["frozen_components"]
    resumed = [name for name in sourced if name not in frozen]
    if resumed:
        with student.select_pipes(enable=resumed):
            student.resume_training(sgd=training["optimizer"])
    student._link_components()
    if read is not None:
        examples = read(student, pairing)
    else:
        (train,) = resolve_dot_names(config, [training["train_corpus"]])
        examples = read_annotated(student, train, which="training", path="train")
    with student.select_pipes(disable=[*frozen, *resumed]):
        check_annotation(student, examples, pairing)
        try:
            student.initialize(lambda: examples, sgd=training["optimizer"])
        except ValueError as error:
            if not str(error).startswith("[E"):
                raise
            raise ConfigError(f"The student cannot be initialized: {error}") from error
    annotating = training["annotating_components"]
    for name, pipe in student.pipeline:
        for listener in getattr(pipe, "listening_components", []):
            is_frozen = (name in frozen, listener in frozen)
            if is_frozen == (False, True):
                logger.warning(Warnings.W087.format(name=name, listener=listener))
            elif is_frozen == (True, False) and name not in annotating:
                logger.warning(Warnings.W086.format(name=name, listener=listener))


# Labels


def save_labels(
    teacher: Language, config: Config, directory: Path, pairs: Mapping[str, str]
) -> Config:
    """Give the student's pipes the labels of the teacher's pipes, in the same order.

    The labels are written to files, as `spacy init labels` does, because a config cannot hold
    labels such as "$".

    config: the student's, not interpolated.
    directory: receives the files. It is created if it is missing.
    pairs: the teacher's name of a pipe, by the student's. No pipe comes from another pipeline.
    RETURNS: the config, with [initialize.components.NAME.labels] set for each pipe that learns from
        the teacher and has no labels in the config.
    """
    config = config.copy()
    for name, source in pairs.items():
        component = config["components"][name]
        initialize = config.get("initialize", {}).get("components", {}).get(name, {})
        if initialize.get("labels") is not None:
            continue
        labels = labels_for(component["factory"], teacher, source)
        if labels is None and kind_of(teacher.get_pipe(source)) is None:
            labels = declared_labels(component["factory"], teacher.get_pipe(source))
        if labels is None:
            continue
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / f"{name}.json"
        srsly.write_json(path, labels)
        reader = {"@readers": "spacy.read_labels.v1", "path": str(path), "require": True}
        components = config.setdefault("initialize", {}).setdefault("components", {})
        components.setdefault(name, {})["labels"] = reader
    return config


def check_annotation(student: Language, examples: Sequence[Example], pairing: Pairing) -> None:
    """Raise ConfigError if the annotation has nothing for a pipe that learns from it alone.

    student: made, but not initialized.
    examples: the training data.
    pairing: the pipes that learn from the teacher.
    """
    given = student.config.interpolate()["initialize"]["components"]
    nobody = "the teacher has no pipe that could teach it"
    if pairing.unused:
        nobody += (
            ", as far as its components declare what they set. If one of them sets it, name it: "
            "teacher in [distillation.pipes.{}]"
        )
    problems = [
        f"{name!r}: {pairing.alone.get(name, nobody.format(name))}"
        for name, pipe in student.pipeline
        if is_learner(pipe)
        and name not in pairing.sources
        and given.get(name, {}).get("labels") is None
        and not has_annotation(pipe, examples)
    ]
    if problems:
        raise ConfigError(
            "The training corpus has no annotation for pipes that do not learn from the teacher, "
            "so they have nothing to learn.\n" + "\n".join(problems) + "\n"
            "Remove the pipes from [nlp] pipeline and from [components], or give documents that "
            "are annotated for them. 'init-config pipeline --teacher' writes a config with the "
            "teacher's pipes."
        )


def check_gold_labels(
    student: Language, examples: Iterable[Example], *, frozen: Collection[str] = ()
) -> None:
    """Raise ConfigError if the gold annotation has labels that a pipe of the student lacks.

    Such labels would fail deep in a loss, or go unnoticed.

    student: initialized.
    examples: the training data.
    frozen: names of pipes that do not learn.
    """
    examples = list(examples)
    problems = []
    for name, pipe in student.pipeline:
        unknown, known = unknown_labels(pipe, examples)
        if unknown and name not in frozen:
            problems.append(
                f"{name!r}\n  only in the annotation: {list_labels(unknown)}\n"
                f"  of the pipe: {list_labels(known)}"
            )
    if problems:
        raise ConfigError(
            "The annotation of the training data has labels that pipes of the student do not have. "
            "Pipes that learn from the teacher know its labels.\n" + "\n".join(problems) + "\n"
            "Remove the labels from the data, train the teacher on data that has them, or let the "
            'pipe learn from gold alone: set target = "gold" in [distillation.pipes.NAME].'
        )


# The encoder


def find_obstacle(teacher: Language, config: Config) -> str | None:
    """Say why the student's encoder cannot start from the teacher's layers, or return None.

    config: the student's.
    """
    encoders = _encoders(teacher)
    if len(encoders) != 1:
        n_encoders = len(encoders) or "no"
        return f"the teacher has {n_encoders} components 'distil_transformer', expected one"
    engine = encoders[0].settings.engine
    if engine != "torch":
        return (
            f"the teacher's encoder has engine = {engine!r}, whose weights cannot be trained; "
            "use the pipeline that it was made from"
        )
    names = _encoder_names(config)
    if len(names) != 1:
        return f"the student has {len(names) or 'no'} components 'distil_transformer', expected one"
    engine = config["components"][names[0]].get("model", {}).get("engine", "torch")
    if engine != "torch":
        return f"the student's encoder has engine = {engine!r}, which does not learn"
    from spacy_distil.students.starting import family_obstacle

    return family_obstacle(encoders[0])


def start_from_teacher(
    config: Config,
    teacher: Language,
    directory: Path,
    settings: StudentSettings,
    texts: Iterable[Text] = (),
) -> Config:
    """Make the student's encoder of layers of the teacher's trained encoder.

    config: the student's, not interpolated. All settings of its encoder but `name` stay.
    directory: becomes a Hugging Face model directory with the encoder and its tokenizer.
    settings: which layers and pieces, and how layers and embeddings change.
    texts: to count pieces in. They are read only if the settings need it.
    RETURNS: the config, with the encoder's `name` set to the directory.
    """
    obstacle = find_obstacle(teacher, config)
    if obstacle is not None:
        raise ConfigError(
            f"The student cannot start from the teacher's layers: {obstacle}. "
            'Set start = "config" in [distillation.student] to start from the encoder that the '
            "student's config names."
        )
    from spacy_distil.students.starting import save_student

    pruned = save_student(
        _encoders(teacher)[0],
        directory,
        settings.layers,
        settings.n_layers,
        heads=settings.heads,
        ffn=settings.ffn,
        width=settings.width,
        share_layers=settings.share_layers,
        embedding_size=settings.embedding_size,
        texts=texts,
        vocabulary=settings.vocabulary,
    )
    if pruned is not None:
        msg.info(f"The student's vocabulary: {pruned.describe()}")
    return _with_encoder(config, directory)


def start_pruned(
    config: Config, directory: Path, texts: Iterable[Text], vocabulary: VocabularySettings
) -> Config:
    """Give the encoder that a student's config names a smaller vocabulary.

    For the arguments see `start_from_teacher`.
    """
    from spacy_distil.students.starting import save_pruned

    names = _encoder_names(config)
    if len(names) != 1:
        raise ConfigError(
            f"[{SECTION}.student.vocabulary] is the vocabulary of one encoder, but the student "
            f"has {len(names) or 'no'} new components 'distil_transformer'. Set its size and "
            "min_count to null."
        )
    encoder = config.interpolate()["components"][names[0]].get("model", {}).get("name")
    pruned = save_pruned(str(encoder), directory, texts, vocabulary)
    msg.info(f"The student's vocabulary: {pruned.describe()}")
    return _with_encoder(config, directory)


def read_counted_texts(
    settings: PipelineDistilConfig, config: Config, teacher: Language, *, tokenizer: bool
) -> Iterator[Text]:
    """Read all documents of a run, annotated or not, to count pieces in.

    config, tokenizer: the student's config, and whether it takes the teacher's tokenizer.
    RETURNS: texts, or lists of tokens if the student's encoder reads token by token.
    """
    config = config.copy()
    components = config.interpolate()["components"]
    models = [components[name].get("model", {}) for name in _encoder_names(config)]
    config["nlp"]["pipeline"], config["components"] = [], {}
    config.setdefault("training", {}).update(frozen_components=[], annotating_components=[])
    nlp = load_model_from_config(config, auto_fill=True)
    take_state(nlp, teacher, tokenizer=tokenizer)
    train, _, text = resolve_corpora(nlp, settings)
    for reader in (train, text):
        for example in reader(nlp) if reader is not None else ():
            if any(model.get("pieces_from") == "tokens" for model in models):
                yield read_docs([example.predicted])[0].split()
            else:
                yield example.predicted.text


def _with_encoder(config: Config, directory: Path) -> Config:
    """Return the config with another encoder. It has one new `distil_transformer`."""
    config = config.copy()
    component = config["components"][_encoder_names(config)[0]]
    component.setdefault("model", {})["name"] = str(directory)
    return config


def _encoders(nlp: Language) -> list[EncoderShim]:
    pipes: list[Any] = [pipe for _, pipe in nlp.pipeline]
    return [get_encoder(pipe.model) for pipe in pipes if isinstance(pipe, DistilTransformerPipe)]


def _encoder_names(config: Config) -> list[str]:
    """List the pipeline's components that are a new `distil_transformer`."""
    return [
        name
        for name in config["nlp"]["pipeline"]
        if config["components"].get(name, {}).get("factory") == "distil_transformer"
    ]


# The heads


def copy_heads(student: Language, teacher: Language, pairs: Mapping[str, str]) -> dict[str, str]:
    """Copy the weights of the teacher's pipes to the student's pipes that fit.

    Two pipes fit if they are of the same kind, have the same outputs in the same order, and have
    layers of the same names and shapes. The other pipes stay as they were initialized. The encoder
    behind a listener does not count as a layer of the pipe.

    student, teacher: initialized.
    pairs: the teacher's name of a pipe, by the student's.
    RETURNS: for each pair "copied", or the difference, with the teacher's side first.
    """
    return {
        name: _copy_head(student.get_pipe(name), teacher.get_pipe(source))
        for name, source in pairs.items()
    }


def _copy_head(student: Any, teacher: Any) -> str:
    if type(student) is not type(teacher):
        return f"another kind of pipe: {type(teacher).__name__} and {type(student).__name__}"
    names, own_names = output_names(teacher), output_names(student)
    if names != own_names:
        same = sorted(map(str, names)) == sorted(map(str, own_names))
        return "the same labels in another order" if same else "other labels"
    layers, own_layers = _layers(teacher.model), _layers(student.model)
    difference = _difference(layers, own_layers)
    if difference is not None:
        return difference
    for layer, own in zip(layers, own_layers, strict=True):
        for name in own.param_names:
            if layer.has_param(name):
                weights: Any = own.ops.asarray(layer.get_param(name))
                own.set_param(name, weights.copy())
    if "unseen_classes" in teacher.model.attrs:
        # Moves that were added to a parser after its training. It does not make them yet.
        student.model.attrs["unseen_classes"] = set(teacher.model.attrs["unseen_classes"])
    return "copied"


def _layers(model: Model) -> list[Model]:
    """List the layers of a model that have parameters, in a fixed order."""
    return [layer for layer in model.walk() if layer.param_names]


def _difference(teacher: Sequence[Model], student: Sequence[Model]) -> str | None:
    """Say why the teacher's weights do not fit the student's layers, or return None if they do."""
    names, own_names = [each.name for each in teacher], [each.name for each in student]
    if names != own_names:
        return f"other layers: {', '.join(names)} and {', '.join(own_names)}"
    for layer, own in zip(teacher, student, strict=True):
        shapes, own_shapes = _shapes(layer), _shapes(own)
        if shapes == own_shapes:
            continue
        width, own_width = layer.maybe_get_dim("nI"), own.maybe_get_dim("nI")
        if width != own_width:
            return f"another width: {width} and {own_width}"
        return f"other shapes of {own.name!r}: {shapes} and {own_shapes}"
    return None


def _shapes(layer: Model) -> dict[str, tuple[int, ...] | None]:
    """List the shapes of a layer's parameters. None stands for one that is not initialized."""
    return {
        name: layer.get_param(name).shape if layer.has_param(name) else None
        for name in layer.param_names
    }
