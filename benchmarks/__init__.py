"""Benchmarks of spacy-distil. README.md says what each one measures and how to run it."""
