"""All that the processes of `tests.children` need, imported before they are forked.

No torch operation runs here: threads of torch do not survive a fork.
"""

from __future__ import annotations

import contextlib
import threading

import accelerate  # noqa: F401
import spacy
import spacy.cli
import torch  # noqa: F401
import transformers  # noqa: F401
from tqdm import tqdm  # type: ignore[import-untyped]

import spacy_distil.cli
import spacy_distil.distillation.encoder.run
import spacy_distil.distillation.pipeline.run
import spacy_distil.export.convert
import spacy_distil.export.quantize
import spacy_distil.students.build  # noqa: F401
import tests.distillation.pipeline.util
import tests.teachers  # noqa: F401

with contextlib.suppress(ImportError):
    import spacy_transformers  # noqa: F401
for lang in ("en", "xx"):
    spacy.blank(lang).get_factory_meta("tagger")  # reads the entry points
# Its own lock is for several processes, and outlives those that are killed.
tqdm.set_lock(threading.RLock())
