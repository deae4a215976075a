"""Predictions beside the truth: how far the probabilities of pipes can be believed."""
