"""Running encoders that torch compiles."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from wasabi import msg

from spacy_distil.errors import ConfigError

# Forms of input that torch compiles an encoder for. Teacher and student are often of one class, and
# share the limit. Each is compiled for training or evaluation, for one block, a fixed number and
# any number of blocks, and for blocks with and without padding. torch's own limit is 8.
MAX_COMPILATIONS = 64
# torch's logger for what it compiles.
_LOGGER = "torch._dynamo.convert_frame"


@contextmanager
def compiling() -> Iterator[None]:
    """Run compiled encoders.

    Raises `ConfigError` if torch cannot compile. Warns if it compiles them no longer.
    """
    import torch._dynamo  # takes seconds to import
    from torch._dynamo.exc import TorchDynamoException

    logger, limit = logging.getLogger(_LOGGER), _LimitHandler()
    logger.addHandler(limit)
    try:
        # Its name in all versions of torch; newer ones have another name, too.
        with torch._dynamo.config.patch(cache_size_limit=MAX_COMPILATIONS):
            yield
    except TorchDynamoException as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(
            f"training.compile = true, but torch cannot compile the encoders here: {reason}\n"
            f"Set training.compile = false. (On a CPU, torch needs a C++ compiler such as g++.)"
        ) from error
    finally:
        logger.removeHandler(limit)


class _LimitHandler(logging.Handler):
    """Warns, once, if torch has compiled a function too often and will not compile it again."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._has_warned = False

    def emit(self, record: logging.LogRecord) -> None:
        if "hit config." not in str(record.msg) or self._has_warned:
            return
        self._has_warned = True
        msg.warn(
            f"torch has compiled the encoders {MAX_COMPILATIONS} times for different inputs. It "
            f"runs further inputs without compiling, which is slower: compare the speed with "
            f"training.compile = false"
        )
