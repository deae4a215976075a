"""Benchmark of loading and saving an encoder."""
