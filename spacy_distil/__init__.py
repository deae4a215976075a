"""Distilled transformers as spaCy components.

The functions below are imported when they are first used, so `import spacy_distil` costs nothing if
you only run pipelines.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spacy_distil.distillation import distil_encoder, distil_pipeline
    from spacy_distil.export.convert import convert
    from spacy_distil.export.quantize import quantize
    from spacy_distil.fitting.family import load
    from spacy_distil.fitting.fit import fit
    from spacy_distil.report import benchmark, compare
    from spacy_distil.trust.calibration import calibrate
    from spacy_distil.trust.confidence import confidence
    from spacy_distil.trust.explanations.explain import explain

__version__ = "0.1.0"
__all__ = [
    "__version__",
    "benchmark",
    "calibrate",
    "compare",
    "confidence",
    "convert",
    "distil_encoder",
    "distil_pipeline",
    "explain",
    "fit",
    "load",
    "quantize",
]

_MODULES = {
    "benchmark": "spacy_distil.report",
    "calibrate": "spacy_distil.trust.calibration",
    "compare": "spacy_distil.report",
    "confidence": "spacy_distil.trust.confidence",
    "convert": "spacy_distil.export.convert",
    "distil_encoder": "spacy_distil.distillation",
    "distil_pipeline": "spacy_distil.distillation",
    "explain": "spacy_distil.trust.explanations.explain",
    "fit": "spacy_distil.fitting.fit",
    "load": "spacy_distil.fitting.family",
    "quantize": "spacy_distil.export.quantize",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
