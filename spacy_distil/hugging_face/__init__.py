"""Fine-tuned models of transformers as pipelines of spaCy, with the same weights.

A token classifier becomes a `distil_ner`, a `tagger` or a `morphologizer`, a text classifier a
`textcat` or `textcat_multilabel`, each behind a `distil_transformer`. An encoder becomes nothing
but that.
"""

from spacy_distil.hugging_face.description import Description, describe, is_hugging_face
from spacy_distil.hugging_face.load import load_classifier, load_teacher

__all__ = ["Description", "describe", "is_hugging_face", "load_classifier", "load_teacher"]
