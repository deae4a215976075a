"""The commented configs that `init-config train` writes; `configs/transformer.cfg` is one."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from typing import Any, Literal, get_args

import spacy
from jinja2 import Environment
from spacy.util import combine_score_weights, get_lang_class
from thinc.api import Config

from spacy_distil.errors import ConfigError

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
)
# Of these, pairs that write the same annotation.
RIVALS = (("ner", "distil_ner"), ("textcat", "textcat_multilabel"))

# Small encoders; for every other language the one of 104 languages.
SMALL_ENCODERS = {"en": "distilbert-base-uncased"}
SMALL_MULTILINGUAL = "distilbert-base-multilingual-cased"

TEMPLATE = """\
# Training of a pipeline on one shared transformer, for a {{ "GPU" if gpu else "CPU" }}:
#
#   python -m spacy train CONFIG --output DIR --paths.train train.spacy --paths.dev dev.spacy
#
{% if gpu %}
# The encoder takes the GPU of its own accord, the other pipes with --gpu-id 0, which needs CuPy.
#
{% endif %}
# Any setting can be given on the command line too, by its dotted name:
#
#   --paths.encoder path/to/encoder --training.max_steps 5000
#
# Teacher and student differ in paths.encoder alone: the other pipes infer its width.
# Written by: {{ command }}

[paths]
train = null
dev = null
# Directory or name on the Hugging Face hub of a BERT-like encoder.
encoder = {{ encoder | json }}
vectors = null
init_tok2vec = null

[system]
seed = 0
{% if gpu %}
# spaCy's own layers take their memory from torch's pool, so that neither starves the other.
{% endif %}
gpu_allocator = {{ "pytorch" | json if gpu else "null" }}

[nlp]
lang = {{ lang | json }}
pipeline = {{ (["transformer"] + pipes) | json }}
disabled = []
before_creation = null
after_creation = null
after_pipeline_creation = null
# Docs that nlp.pipe takes at a time. max_batch_pieces bounds the memory of a forward, this the
# vectors of all docs of two batches: lower it for very long ones.
batch_size = 256

{{ tokenizer }}

[nlp.vectors]
@vectors = "spacy.Vectors.v1"

[components]

[components.transformer]
factory = "distil_transformer"
# What sets doc._.trf_data, for code that is written against spacy-transformers; null for nothing.
set_extra_annotations = null

[components.transformer.model]
@architectures = "spacy-distil.DistilTransformer.v1"
name = ${paths.encoder}
engine = "torch"
# A longer doc is several windows, which overlap; nothing is truncated.
{% if gpu %}
# null: as many pieces as the encoder takes.
window = null
overlap = 32
{% else %}
# Attention grows with the square of the window.
window = 192
overlap = 16
{% endif %}
# Padded pieces in a forward; null for what suits the device.
max_batch_pieces = null
pooling = "mean"
# Whose output is used; null for the last.
layer = null
{% if gpu %}
# bfloat16 (float16 on older GPUs); weights stay in float32.
{% else %}
# In training, bfloat16 on x86 CPUs with AVX512-BF16 or AMX, with torch 2.10 or newer; elsewhere it
# changes nothing. Weights stay in float32.
{% endif %}
mixed_precision = true
# null: what the encoder's own config says.
dropout = null
{% if gpu %}
attention_dropout = null
{% else %}
# Dropping attention probabilities takes much time on a CPU.
attention_dropout = 0.0
{% endif %}
# true saves memory in training: hidden states are computed twice, which takes longer.
gradient_checkpointing = false
device = "auto"
threads = null
frozen = false
{% if optimize == "accuracy" %}
# The other pipes start at random and learn at the full rate, the encoder at a twentieth of it, as
# full-size ones want it. A small one (up to 6 layers, 384 wide) takes 0.2.
learn_rate_scale = 0.05
{% else %}
# The other pipes start at random and learn at the full rate, a small encoder at a fifth of it. A
# full-size one (12 layers, 768 wide) wants 0.05.
learn_rate_scale = 0.2
{% endif %}
layer_decay = 1.0
{% for pipe in pipes %}

[components.{{ pipe }}]
factory = {{ pipe | json }}
{% if pipe == "tagger" %}
label_smoothing = 0.0
neg_prefix = "!"
overwrite = false
scorer = {"@scorers":"spacy.tagger_scorer.v1"}
{% elif pipe == "morphologizer" %}
extend = false
label_smoothing = 0.0
overwrite = true
scorer = {"@scorers":"spacy.morphologizer_scorer.v1"}
{% elif pipe == "trainable_lemmatizer" %}
backoff = "orth"
# Ways to change a form into its lemma that are seen less often are not learned.
min_tree_freq = 3
overwrite = false
scorer = {"@scorers":"spacy.lemmatizer_scorer.v1"}
top_k = 1
{% elif pipe == "senter" %}
overwrite = false
scorer = {"@scorers":"spacy.senter_scorer.v1"}
{% elif pipe == "parser" %}
learn_tokens = false
# Labels that are seen less often become "dep".
min_action_freq = 30
moves = null
scorer = {"@scorers":"spacy.parser_scorer.v1"}
update_with_oracle_cut_size = 100
{% elif pipe == "ner" %}
incorrect_spans_key = null
moves = null
scorer = {"@scorers":"spacy.ner_scorer.v1"}
update_with_oracle_cut_size = 100
{% elif pipe == "distil_ner" %}
scorer = {"@scorers":"spacy.ner_scorer.v1"}
{% elif pipe == "spancat" %}
max_positive = null
scorer = {"@scorers":"spacy.spancat_scorer.v1"}
# The group of doc.spans that is learned.
spans_key = "sc"
threshold = 0.5
{% elif pipe == "textcat" %}
scorer = {"@scorers":"spacy.textcat_scorer.v2"}
threshold = 0.0
{% elif pipe == "textcat_multilabel" %}
scorer = {"@scorers":"spacy.textcat_multilabel_scorer.v2"}
threshold = 0.5
{% endif %}
{% if pipe == "spancat" %}

[components.spancat.suggester]
@misc = "spacy.ngram_suggester.v1"
# Tokens of a span: a longer one is never found.
sizes = [1,2,3]
{% endif %}

[components.{{ pipe }}.model]
{% if pipe in ("parser", "ner") %}
@architectures = "spacy.TransitionBasedParser.v2"
state_type = {{ pipe | json }}
extra_state_tokens = false
hidden_width = {{ 128 if pipe == "parser" else 64 }}
maxout_pieces = {{ 3 if pipe == "parser" else 2 }}
use_upper = false
nO = null
{% elif pipe == "spancat" %}
@architectures = "spacy.SpanCategorizer.v1"

[components.spancat.model.reducer]
@layers = "spacy.mean_max_reducer.v1"
hidden_size = 128

[components.spancat.model.scorer]
@layers = "spacy.LinearLogistic.v1"
nO = null
nI = null
{% elif pipe in ("textcat", "textcat_multilabel") %}
@architectures = "spacy.TextCatReduce.v1"
exclusive_classes = {{ (pipe == "textcat") | json }}
# The mean of the token vectors.
use_reduce_first = false
use_reduce_last = false
use_reduce_max = false
use_reduce_mean = true
nO = null
{% else %}
@architectures = "spacy.Tagger.v2"
nO = null
normalize = false
{% endif %}

[components.{{ pipe }}.model.tok2vec]
@architectures = "spacy-distil.Listener.v1"
upstream = "*"
width = null
{% endfor %}

[corpora]
{% for split in ("train", "dev") %}

[corpora.{{ split }}]
@readers = "spacy.Corpus.v1"
path = ${paths.{{ split }}}
gold_preproc = false
max_length = 0
limit = 0
augmenter = null
{% endfor %}

[training]
train_corpus = "corpora.train"
dev_corpus = "corpora.dev"
seed = ${system.seed}
gpu_allocator = ${system.gpu_allocator}
# In the other pipes.
dropout = 0.1
# Batches whose gradients are summed up before a step.
accumulate_gradient = 1
# The learning rate falls to 0 at max_steps: to stop before would leave out the best part.
patience = 0
max_epochs = 0
# {{ "{:,}".format(steps) }} batches of {{ "{:,}".format(words) }} words are 8 passes over \
{{ "{:,}".format(steps * words // 8) }} words.
max_steps = {{ steps }}
eval_frequency = 200
frozen_components = []
annotating_components = []
before_to_disk = null
before_update = null

[training.logger]
@loggers = "spacy.ConsoleLogger.v3"
progress_bar = null
console_output = true
output_file = null

[training.batcher]
@batchers = "spacy.batch_by_words.v1"
# Words in a batch. Less takes less memory: a training step holds all hidden states of its batch.
size = {{ words }}
tolerance = 0.2
# spaCy's quickstart has true for transformers, which silently drops every doc that is longer than a
# batch. With false such a doc is a batch of its own.
discard_oversize = false
get_length = null

[training.optimizer]
# The encoder learns by torch's AdamW, with these settings.
@optimizers = "Adam.v1"
beta1 = 0.9
beta2 = 0.999
L2_is_weight_decay = true
L2 = 0.01
grad_clip = 1.0
use_averages = false
eps = 0.00000001

[training.optimizer.learn_rate]
@schedules = "warmup_linear.v1"
warmup_steps = 100
total_steps = ${training.max_steps}
# Of the other pipes; the encoder's is this times learn_rate_scale.
initial_rate = 0.001

# How much each score counts in the choice of model-best; one that is null is not shown.
[training.score_weights]
{% for score, weight in score_weights.items() %}
{{ score }} = {{ weight | json }}
{% endfor %}

[initialize]
vectors = ${paths.vectors}
init_tok2vec = ${paths.init_tok2vec}
vocab_data = null
lookups = null
before_init = null
after_init = null

[initialize.components]

{{ initialize_tokenizer }}

[pretraining]
"""


def training_config(
    *,
    lang: str = "en",
    pipes: Sequence[str] = ("tagger", "parser", "ner"),
    encoder: str | None = None,
    optimize: Optimize = "efficiency",
    gpu: bool = False,
) -> str:
    """A config of `spacy train` with every setting, as text with comments.

    lang: two-letter code of the language.
    pipes: some of PIPES, in the order of the pipeline.
    encoder: directory or hub name; None for one that suits the language.
    optimize: "efficiency" for a small encoder, a student; "accuracy" for a full-size one.
    gpu: whether a GPU is to train it.
    Raises ConfigError for what cannot be written.
    """
    refuse_pipes(pipes)
    if optimize not in get_args(Optimize):
        raise ConfigError(
            f"optimize = {optimize!r}: expected one of {', '.join(get_args(Optimize))}."
        )
    language = find_language(lang)
    code = str(language.lang)
    encoder = encoder or suitable_encoder(code, optimize)
    command = [
        *("python", "-m", "spacy", "distil", "init-config", "train"),
        *("--lang", code, "--pipeline", ",".join(pipes), "--encoder", encoder),
        *("--optimize", optimize, "--gpu" if gpu else "--cpu"),
    ]
    environment = Environment(trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    environment.filters["json"] = json.dumps
    defaults = language.default_config
    return environment.from_string(TEMPLATE).render(
        command=shlex.join(command),
        lang=code,
        pipes=list(pipes),
        encoder=encoder,
        optimize=optimize,
        gpu=gpu,
        tokenizer=block("nlp.tokenizer", defaults["nlp"]["tokenizer"]),
        initialize_tokenizer=block("initialize.tokenizer", defaults["initialize"]["tokenizer"]),
        words=4000 if gpu else 1000,
        steps=1600,
        score_weights=score_weights(pipes),
    )


def refuse_pipes(pipes: Sequence[str]) -> None:
    """Raise ConfigError where these pipes cannot be a pipeline."""
    choice = f"Choose from {', '.join(PIPES)}."
    if not pipes:
        raise ConfigError(f"No pipe to train. {choice}")
    for pipe in pipes:
        if pipe in ("transformer", "distil_transformer", "tok2vec"):
            raise ConfigError(
                f"pipeline: {pipe!r} is not to be named, the encoder is there anyway. {choice}"
            )
        if pipe not in PIPES:
            raise ConfigError(
                f"pipeline: {pipe!r} is none that this command writes; add it to the config by "
                f"hand. {choice}"
            )
        if pipes.count(pipe) > 1:
            raise ConfigError(f"pipeline: {pipe!r} is named twice.")
    for rivals in RIVALS:
        if set(rivals) <= set(pipes):
            raise ConfigError(
                f"pipeline: {' and '.join(rivals)} write the same annotation. Choose one of them."
            )


def find_language(lang: str) -> type[spacy.Language]:
    """spaCy's class of a language. Raises ConfigError where there is none."""
    try:
        return get_lang_class(lang)
    except ImportError as error:
        raise ConfigError(
            f"lang = {lang!r}: spaCy has no such language. Expected a two-letter code such as "
            "'en', or 'xx' for many languages at once."
        ) from error


def suitable_encoder(lang: str, optimize: Optimize) -> str:
    """Name on the hub of a small encoder, or of the full-size one that spaCy recommends."""
    if optimize == "efficiency":
        return SMALL_ENCODERS.get(lang, SMALL_MULTILINGUAL)
    from spacy.cli.init_config import RECOMMENDATIONS

    found = RECOMMENDATIONS.get(lang, RECOMMENDATIONS["__default__"])
    return found["transformer"]["accuracy"]["name"]


def score_weights(pipes: Sequence[str]) -> dict[str, float | None]:
    """Even weights for the pipes, divided up among the scores of each as spaCy does it."""
    nlp = spacy.blank("xx")  # knows the factories
    weights: dict[str, float | None] = {}
    for pipe in pipes:
        for score, weight in (nlp.get_factory_meta(pipe).default_score_weights or {}).items():
            # spaCy's tagger would take the weight of pos_acc away from a morphologizer before it.
            if weight or weights.get(score) is None:
                weights[score] = weight
    return combine_score_weights([weights])


def block(name: str, settings: dict[str, Any]) -> str:
    """One block of a config, with a heading."""
    *parents, key = name.split(".")
    content: dict[str, Any] = {key: settings}
    for parent in reversed(parents):
        content = {parent: content}
    text = Config(content).to_str(interpolate=False)
    return text[text.index(f"[{name}]") :].strip()
