"""What the scripts share."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from wasabi import msg

from spacy_distil.errors import DistilError


@contextmanager
def friendly_errors() -> Iterator[None]:
    """Print a `DistilError` as spaCy's commands print theirs, and exit with 1."""
    try:
        yield
    except DistilError as error:
        msg.fail(type(error).__name__.removesuffix("Error"), str(error))
        sys.exit(1)
