"""Benchmark of explanations: whether the tokens that they name matter to the pipeline."""
