"""Pipelines into faster ones of the same weights."""
