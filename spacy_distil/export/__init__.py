"""Make pipelines faster: `quantize` for ONNX Runtime, `convert` from spacy-transformers."""
