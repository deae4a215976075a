"""The commands of this benchmark:

    python -m benchmarks.vectors.scores    similarity, retrieval and classification by vectors

It has a --help.
"""
