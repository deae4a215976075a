"""The commands of this benchmark:

    python -m benchmarks.vectors.scores    similarity, retrieval and classification by vectors
    python -m benchmarks.vectors.speed     words/s beside sentence-transformers' int8 ONNX backend

Each has a --help.
"""
