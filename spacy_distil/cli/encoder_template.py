"""The commented config that `init-config encoder` writes; `configs/distil.cfg` is a copy of it."""

ENCODER_CONFIG = """\
# Encoder distillation: a smaller student learns from a frozen teacher.
#
#   python -m spacy distil encoder configs/distil.cfg --output DIR
#
# Any setting can be given on the command line too, by its dotted name:
#
#   --teacher.name path/to/encoder --corpus.train texts/ --training.max_steps 1000
#
# A teacher without a masked-LM head, such as a sentence encoder, has no distribution over pieces to
# learn from. Switch that objective off, or give the teacher a head with 'spacy distil adapt':
#
#   --objectives.soft_targets.weight 0

[teacher]
# A BERT, DistilBERT, RoBERTa, XLM-R, CamemBERT, ELECTRA, MPNet or ALBERT encoder: a local directory
# or a name on the Hugging Face hub.
name = "bert-base-uncased"
# Branch, tag or commit on the hub; null is its main branch.
revision = null

[student]
# Which of the teacher's layers the student is made of: "first" or "last", the lowest or uppermost;
# "even", evenly spaced ones; "ends", half from below and half from above;
# "all"; or a list such as [0, 2, 4], 0 being the lowest.
layers = "first"
# How many; null is half of the teacher's, or as many as a list names.
n_layers = null
# "teacher" starts from the weights of these layers, "random" from none.
start = "teacher"
# Attention heads and feed-forward neurons of each layer, and hidden size; null is the teacher's, or
# of heads as many of its size as make the width. Where there are fewer of anything, the most
# important ones stay, as measured on blocks of the corpus.
# 'spacy distil student' shows what a shape comes to.
heads = null
ffn = null
width = null
importance_blocks = 64

[corpus]
# Text to distil on: a path or a list of paths, of files or directories.
#   .txt    one paragraph per line, a blank line between documents
#   .jsonl  one document per line, {"text": "..."}
#   .spacy  spaCy's binary format
train = []
# Held-out text. Where the list is empty, dev_fraction of the blocks of `train` is held out.
dev = []
dev_fraction = 0.01
# Pieces in a block, special pieces included. Blocks are packed full across documents.
block_size = 512
# Read only the first so many blocks; null reads everything.
max_blocks = null
max_dev_blocks = 500
# Share of the pieces to predict (of these 80 % become [MASK], 10 % a random piece). "auto" is 0.15
# where an objective is about masked pieces, else 0: hidden states are learnt on clean text.
mask_probability = "auto"
# Where the tokenised corpus is kept; null is DIR/cache.
cache = null

# Each block below [objectives] is one loss; they are summed by weight, and weight = 0 switches one
# off: it is neither computed nor does it ask anything of the teacher. A weight or a temperature is
# a number, or a schedule of spaCy's:
#   [objectives.soft_targets.temperature]
#   @schedules = "compounding.v1"
#   start = 4
#   stop = 1
#   compound = 0.999
[objectives]

# The teacher's distribution over the vocabulary: KL divergence at a temperature, times its square.
[objectives.soft_targets]
@distil_objectives = "spacy-distil.SoftTargets.v1"
weight = 5.0
temperature = 2.0
# "masked" computes it where pieces are masked, "all" everywhere (about 7 times the softmaxes).
positions = "masked"
# Positions whose logits are in memory at once.
chunk_rows = 1024

# The true pieces at the masked positions: cross-entropy. It gives a student whose teacher has no
# masked-LM head a new one.
[objectives.masked_lm]
@distil_objectives = "spacy-distil.MaskedLM.v1"
weight = 2.0
chunk_rows = 1024

# The direction of the last hidden states: 1 - cosine. Where widths differ, a projection is learnt.
[objectives.cosine]
@distil_objectives = "spacy-distil.Cosine.v1"
weight = 1.0

# Hidden states of some layers: mean squared error. "last", "even", or pairs [layer of the student,
# layer of the teacher], where 0 is the embeddings and 1 the lowest layer.
[objectives.hidden]
@distil_objectives = "spacy-distil.HiddenStates.v1"
weight = 0.0
layers = "even"
# Normalize them first: the student is then free in their scale and mean.
normalize = false

# Self-attention relations among queries, keys and values, as in MiniLMv2.
[objectives.relations]
@distil_objectives = "spacy-distil.Relations.v1"
weight = 0.0
layers = "last"
# Relation heads; null is as many as the teacher has attention heads, or the most below that whose
# number divides both widths.
heads = null
relations = ["queries", "keys", "values"]
# Blocks whose relations are in memory at once.
chunk_blocks = 8

# Stages one after another, each with objectives of its own. Without any, all objectives are summed
# from first to last. For example:
#   [stages.transfer]
#   objectives = ["relations"]
#   share = 0.5
#   [stages.predict]
#   objectives = ["soft_targets", "masked_lm"]
#   share = 0.5
#   learn_rate = 0.0003
# `share` is of the run's steps, relative to the other stages'. Each stage warms up by itself.
[stages]

[training]
seed = 0
# How long: passes over the corpus and optimizer steps, whichever is over first. Either may be null.
epochs = 3
max_steps = null
# Blocks in one optimizer step, over all processes: a number, or a schedule by which it grows:
#   [training.batch_size]
#   @schedules = "compounding.v1"
#   start = 16
#   stop = 256
#   compound = 1.01
batch_size = 128
# Blocks in one forward pass; "auto" is what fits into memory. Only speed depends on it.
micro_batch = "auto"
# AdamW (0.9, 0.98): rises linearly over the first `warmup` of the steps, then falls to 0.
learn_rate = 0.0005
warmup = 0.05
# Not applied to biases and layer norms.
weight_decay = 0.01
# Norm that the gradient of a step is clipped to.
clip = 1.0
# The student's while it is distilled; saved with it is the teacher's.
dropout = 0.0
# "bf16", "no", or "auto": bf16 on a GPU or CPU that has instructions for it.
mixed_precision = "auto"
# torch.compile for both encoders. It takes a minute or more, and does not pay everywhere.
compile = false
# Steps between entries in the log, held-out evaluations and checkpoints.
log_frequency = 20
eval_frequency = 200
checkpoint_frequency = 200
# How many checkpoints are kept, and whether they go when the run has finished.
keep_checkpoints = 1
remove_checkpoints = true
# Write TensorBoard logs to DIR/logs.
tensorboard = true
"""
