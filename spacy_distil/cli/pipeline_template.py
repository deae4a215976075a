"""The commented config that `init-config pipeline` writes; `configs/student.cfg` is a copy."""

PIPELINE_CONFIG = """\
# Pipeline distillation: a small pipeline learns from a trained one. A config of `spacy train`, with
# the section [distillation], at the end, that says what is learned.
#
#   python -m spacy distil pipeline TEACHER configs/student.cfg --output DIR
#
# Any setting can be given on the command line too, by its dotted name:
#
#   --paths.train train.spacy --paths.dev dev.spacy --paths.text texts/ --training.max_steps 5000
#
# Pipes are taught by the teacher's pipes of the same names, and have their labels. A pipe that the
# teacher lacks learns from the annotation alone. Batches are counted in words, nothing is dropped.

[paths]
train = null
dev = null
# Text without annotation: a file or directory of .txt, .jsonl or .spacy files.
text = null
# The encoder that the student starts from where that is not the teacher's own layers.
encoder = "distilbert-base-uncased"

[system]
seed = 0
gpu_allocator = null

[nlp]
lang = "en"
pipeline = ["transformer","morphologizer","tagger","ner","textcat"]
batch_size = 256

[components]

[components.transformer]
factory = "distil_transformer"

[components.transformer.model]
@architectures = "spacy-distil.DistilTransformer.v1"
name = ${paths.encoder}
window = 192
overlap = 16
max_batch_pieces = null
pooling = "mean"
mixed_precision = true
# Dropping attention probabilities takes much time on a CPU.
attention_dropout = 0.0
device = "auto"
frozen = false
# The heads learn at the full rate, the encoder at a fifth of it.
learn_rate_scale = 0.2
layer_decay = 1.0

[components.morphologizer]
factory = "morphologizer"

[components.morphologizer.model]
@architectures = "spacy.Tagger.v2"
nO = null

[components.morphologizer.model.tok2vec]
@architectures = "spacy-distil.Listener.v1"

[components.tagger]
factory = "tagger"

[components.tagger.model]
@architectures = "spacy.Tagger.v2"
nO = null

[components.tagger.model.tok2vec]
@architectures = "spacy-distil.Listener.v1"

[components.ner]
factory = "ner"

[components.ner.model]
@architectures = "spacy.TransitionBasedParser.v2"
state_type = "ner"
extra_state_tokens = false
hidden_width = 64
maxout_pieces = 2
use_upper = false
nO = null

[components.ner.model.tok2vec]
@architectures = "spacy-distil.Listener.v1"

[components.textcat]
factory = "textcat"

[components.textcat.model]
@architectures = "spacy.TextCatReduce.v1"
exclusive_classes = true
use_reduce_first = false
use_reduce_last = false
use_reduce_max = false
use_reduce_mean = true
nO = null

[components.textcat.model.tok2vec]
@architectures = "spacy-distil.Listener.v1"

[corpora]

[corpora.train]
@readers = "spacy.Corpus.v1"
path = ${paths.train}
max_length = 0
gold_preproc = false

[corpora.dev]
@readers = "spacy.Corpus.v1"
path = ${paths.dev}
max_length = 0
gold_preproc = false

[corpora.text]
@readers = "spacy-distil.Texts.v1"
path = ${paths.text}
# Tokens of a document; longer ones are cut. Only the first so many documents; 0 for all.
max_words = 200
limit = 0

[training]
train_corpus = "corpora.train"
dev_corpus = "corpora.dev"
seed = ${system.seed}
gpu_allocator = ${system.gpu_allocator}
dropout = 0.1
accumulate_gradient = 1
patience = 0
max_epochs = 0
max_steps = 1600
eval_frequency = 200

[training.batcher]
@batchers = "spacy.batch_by_words.v1"
size = 1000
tolerance = 0.2
discard_oversize = false

[training.logger]
@loggers = "spacy.ConsoleLogger.v3"
progress_bar = "train"

[training.optimizer]
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
initial_rate = 0.001

[training.score_weights]
pos_acc = 0.25
tag_acc = 0.25
ents_f = 0.25
cats_score = 0.25

[distillation]
# Text without annotation to learn on, beside the training corpus: a reader of [corpora], or null.
corpus = "corpora.text"
# Where what the teacher makes of all documents is kept; null is DIR/cache.
cache = null
# Of soft targets: 1 leaves the distributions as they are, more shows what else the teacher thought
# of. Single pipes can have another.
temperature = 1.0

[distillation.student]
# "teacher": some of the trained teacher's own layers, and its heads. "config": the encoder that
# [components] names, and new heads. "auto": the former where it is possible.
start = "auto"
# Which of the teacher's layers: "first", the lowest; "even"; or a list such as [0, 2, 4].
layers = "first"
# How many; null is half of the teacher's, or as many as a list names.
n_layers = null

[distillation.hidden]
# Which layer of the student learns the hidden states of which of the teacher's: "last", the last
# one of the last one; "even", all of evenly spaced ones; or a list of pairs such as [[3, 6]].
layers = "last"

# The stages of the run, one after the other: their shares of [training] max_steps (0 skips one),
# and the weights of what is learned: hidden states of the encoder, soft targets, gold annotation.

[distillation.stages]

# Hidden states are for a student that does not start from the teacher's own layers: for one that
# does, soft targets in all steps were better.
[distillation.stages.hidden]
share = 0.0
hidden = 1.0
soft = 0.0
gold = 0.0

[distillation.stages.soft]
share = 1.0
hidden = 0.0
soft = 1.0
gold = 0.0

[distillation.stages.gold]
share = 0.0
hidden = 0.0
soft = 0.0
gold = 1.0

# One block for each pipe that is taught otherwise than by default, such as
#
#   [distillation.pipes.ner]
#   teacher = "entities"   the teacher's name of the pipe; null for the same
#   target = "auto"        "soft": its distribution; "silver": its decisions, as if they were
#                          annotation; "gold": annotation alone; "auto": the first that is possible
#   temperature = 2.0      null for that of [distillation]
#   weight = 1.0           factor on the gradient of the pipe

[distillation.pipes]
"""
