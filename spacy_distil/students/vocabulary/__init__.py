"""Smaller vocabularies: drop pieces that a corpus does not use, and their embeddings.

`kinds/` knows one kind of tokenizer per file: which pieces make a piece, and which must stay.
`pruning` chooses the pieces, `renumbering` writes the new tokenizer.json, `encoders` the new
embeddings, `loss` measures the effect on text.
"""

from spacy_distil.students.vocabulary.encoders import prune_encoder, prune_model, prune_teacher
from spacy_distil.students.vocabulary.loss import PruningLoss, pruning_loss
from spacy_distil.students.vocabulary.pruning import PrunedVocabulary, prune_vocabulary
from spacy_distil.students.vocabulary.settings import VocabularySettings

__all__ = [
    "PrunedVocabulary",
    "PruningLoss",
    "VocabularySettings",
    "prune_encoder",
    "prune_model",
    "prune_teacher",
    "prune_vocabulary",
    "pruning_loss",
]
