"""Engines: batches of pieces to hidden states, arrays in and arrays out."""

from spacy_distil.engines.base import Backprop, Engine, StepSettings, TokenEngine, TrainableEngine

__all__ = ["Backprop", "Engine", "StepSettings", "TokenEngine", "TrainableEngine"]
