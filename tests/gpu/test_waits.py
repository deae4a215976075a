"""How often the component waits for the GPU: for each batch once, to read its result, and once in
transformers, which looks into the mask.

On a real GPU the profiler counts some waits twice, so exact numbers are for the simulated one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from thinc.api import NumpyOps

from spacy_distil.encoding import Batch
from tests.cuda_simulation.device import is_active
from tests.cuda_simulation.waits import waits
from tests.util import SENTENCES, encoder_of, make_nlp

pytestmark = pytest.mark.skipif(not is_active(), reason="counts the waits of the simulated GPU")


def engine_and_batch(
    bert_dir: Path, texts: Sequence[str] = SENTENCES, **settings: Any
) -> tuple[Any, Batch]:
    nlp = make_nlp(bert_dir, device="cuda", **settings)
    encoder = encoder_of(nlp)
    (batch,) = encoder._batches(encoder._encode([nlp.make_doc(text) for text in texts]))
    return encoder.engine, batch


def waits_of(call: Callable[..., Any], *args: Any) -> tuple[list[str], Any]:
    with waits.watch() as notes:
        result = call(*args)
    return notes, result


@pytest.mark.parametrize("mixed", [False, True])
def test_prediction_waits_for_its_result(bert_dir: Path, mixed: bool) -> None:
    engine, batch = engine_and_batch(bert_dir, mixed_precision=mixed)
    notes, rows = waits_of(engine.predict, batch, NumpyOps())
    assert len(notes) == 2, notes
    assert "/transformers/" in notes[0]
    assert notes[1].startswith(f"copy of {rows.shape} to the CPU")


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_training_step_waits_for_its_result(bert_dir: Path, checkpointing: bool) -> None:
    engine, batch = engine_and_batch(bert_dir, gradient_checkpointing=checkpointing)
    notes, (rows, backprop) = waits_of(engine.begin_update, batch, NumpyOps())
    assert len(notes) == 2, notes
    notes, _ = waits_of(backprop, np.ones_like(rows))
    # The backward pass computes the forward pass again.
    assert len(notes) == (1 if checkpointing else 0), notes


@pytest.mark.parametrize(("n_words", "length"), [(1, 8), (6, 8), (7, 16), (14, 16), (15, 17)])
def test_lengths_are_multiples_of_8_in_a_window(bert_dir: Path, n_words: int, length: int) -> None:
    """Two of the pieces are special. With 17 of them, 24 would be longer than a window."""
    _, batch = engine_and_batch(bert_dir, ["the " * n_words], window=20, overlap=0)
    assert batch.mask.sum() == n_words + 2
    assert batch.ids.shape == (1, length)
