"""The commented config that `init-config encoder` writes; `configs/distil.cfg` is a copy of it."""

ENCODER_CONFIG = """\
# Encoder distillation: a smaller student learns from a frozen teacher, by DistilBERT's recipe.
#
#   python -m spacy distil encoder configs/distil.cfg --output DIR
#
# Any setting can be given on the command line too, by its dotted name:
#
#   --teacher.name path/to/encoder --corpus.train texts/ --training.max_steps 1000
#
# A teacher without a masked-LM head, such as a sentence encoder, has no distribution over pieces to
# learn from. Switch those objectives off and its hidden states remain:
#
#   --objectives.soft_targets.weight 0 --objectives.masked_lm.weight 0

[teacher]
# A BERT, DistilBERT or RoBERTa encoder: a local directory or a name on the Hugging Face hub.
name = "bert-base-uncased"
# Branch, tag or commit on the hub; null is its main branch.
revision = null

[student]
# Which of the teacher's layers the student starts from: "first", the lowest; "even", evenly spaced
# ones (DistilBERT's choice); or a list such as [0, 2, 4].
layers = "first"
# How many; null is half of the teacher's, or as many as a list names.
n_layers = null

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
# where an objective needs the masked-LM head, else 0: hidden states are learnt on clean text.
mask_probability = "auto"
# Where the tokenised corpus is kept; null is DIR/cache.
cache = null

# Each block below [objectives] is one loss; they are summed by weight, and weight = 0 switches one
# off: it is neither computed nor does it ask anything of the teacher.
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

# The true pieces at the masked positions: cross-entropy.
[objectives.masked_lm]
@distil_objectives = "spacy-distil.MaskedLM.v1"
weight = 2.0
chunk_rows = 1024

# The direction of the last hidden states: 1 - cosine.
[objectives.cosine]
@distil_objectives = "spacy-distil.Cosine.v1"
weight = 1.0

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
# "bf16", "no", or "auto": bf16 on a GPU or CPU that has instructions for it.
mixed_precision = "auto"
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
