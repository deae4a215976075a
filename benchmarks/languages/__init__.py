"""Benchmarks of pipelines for other languages than their teacher's."""
