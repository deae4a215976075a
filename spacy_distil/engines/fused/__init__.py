"""Runs int8 encoders of the BERT form with compiled code: the layers' intermediate numbers stay in
the cache, and windows are not padded. Where it cannot, ONNX Runtime runs the graph.
"""

from spacy_distil.engines.fused.encoder import RECIPE, FusedEncoder
from spacy_distil.engines.fused.rows import sum_rows, use_head_ops

__all__ = ["RECIPE", "FusedEncoder", "sum_rows", "use_head_ops"]
