"""Code that `scripts/` and `benchmarks/` share: configs that fit a corpus, and records of runs."""
