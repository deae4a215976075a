"""Pipes that read two texts together: `distil_pair` and `distil_qa`."""
