"""A small trained teacher of all kinds of pipes, and the docs that it has learned."""

from __future__ import annotations

from pathlib import Path

import pytest
from spacy.language import Language
from spacy.training import Example

from tests.distillation.pipeline.util import PIPES, annotated_examples, train_pipeline


@pytest.fixture(scope="session")
def teacher(bert_dir: Path) -> Language:
    """A pipeline of two layers, 32 wide, and of PIPES, trained for a while. Leave it as it is."""
    return train_pipeline(bert_dir, PIPES, steps=20)


@pytest.fixture
def examples(teacher: Language) -> list[Example]:
    """A dozen annotated docs of the teacher's vocab, which it has been trained on."""
    return annotated_examples(teacher)


@pytest.fixture
def make_examples_for() -> Callable[..., list[Example]]:
    """`make_examples_for(nlp, n, start=0)`: annotated docs of the vocab of `nlp`."""
    return annotated_examples
