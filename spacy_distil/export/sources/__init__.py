"""The packages whose pipelines `convert` reads: one file for each."""
