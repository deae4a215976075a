"""The compiled part of the fused encoder, through ctypes: `encoder.cpp` explains the types."""

from __future__ import annotations

import ctypes
import warnings
from ctypes import POINTER, Structure, c_float, c_int32, c_uint64, c_void_p
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import numpy as np

# The file beside this one, without its suffix. setup.py says how it is made.
NAME = "compiled"
# Loads of AVX-512 are fastest from multiples of this many bytes, and the products demand them.
ALIGNMENT = 64
# The interface that this file describes.
VERSION = 5


class Linear(Structure):
    _fields_ = [
        ("n_in", c_int32),
        ("n_out", c_int32),
        ("weight", c_void_p),
        ("scales", c_void_p),
        ("bias", c_void_p),
        ("start", c_void_p),
    ]


class Norm(Structure):
    _fields_ = [("weight", c_void_p), ("bias", c_void_p)]


class Layer(Structure):
    _fields_ = [
        ("attention_in", Linear),
        ("attention_out", Linear),
        ("up", Linear),
        ("down", Linear),
        ("attention_norm", Norm),
        ("output_norm", Norm),
    ]


class Encoder(Structure):
    _fields_ = [
        ("width", c_int32),
        ("embedding_width", c_int32),
        ("n_neurons", c_int32),
        ("n_heads", c_int32),
        ("n_layers", c_int32),
        ("activation", c_int32),
        ("bfloat16", c_int32),
        ("embedding_bits", c_int32),
        ("epsilon", c_float),
        ("pieces", c_void_p),
        ("piece_scales", c_void_p),
        ("positions", c_void_p),
        ("second_positions", c_void_p),
        ("embedding_norm", Norm),
        ("projection", c_void_p),
        ("projection_bias", c_void_p),
        ("layers", POINTER(Layer)),
    ]


class Windows(Structure):
    _fields_ = [
        ("n_windows", c_int32),
        ("lengths", c_void_p),
        ("ids", c_void_p),
        ("targets", c_void_p),
        ("seconds", c_void_p),
    ]


@cache
def load() -> ctypes.CDLL | None:
    """Load the compiled part. `None` if the install has none, or this CPU cannot run it."""
    directory = Path(__file__).parent
    found = [path for suffix in EXTENSION_SUFFIXES for path in directory.glob(f"{NAME}{suffix}")]
    if not found:
        return None
    try:
        library = ctypes.CDLL(str(found[0]))
    except OSError as error:
        warnings.warn(
            f"{found[0]} cannot be loaded, so ONNX Runtime runs int8 encoders, more slowly: "
            f"{error}. Install spacy-distil again.",
            stacklevel=2,
        )
        return None
    if not hasattr(library, "interface_version") or library.interface_version() != VERSION:
        warnings.warn(
            f"{found[0]} was compiled from another version of spacy-distil, so ONNX Runtime runs "
            "int8 encoders, more slowly. Install spacy-distil again.",
            stacklevel=2,
        )
        return None
    library.supported.restype = library.supports_bfloat16.restype = c_int32
    if not library.supported():
        return None
    library.scratch_size.argtypes = [POINTER(Encoder), POINTER(Windows)]
    library.scratch_size.restype = c_uint64
    library.encode.argtypes = [POINTER(Encoder), POINTER(Windows), c_void_p, c_void_p]
    library.pool.argtypes = [c_void_p, c_int32, c_int32, c_void_p, c_void_p, c_void_p, c_void_p]
    matrix = (c_void_p, c_int32)
    library.multiply_rows.argtypes = [*matrix, c_int32, *matrix, c_void_p, c_void_p]
    for function in (library.encode, library.pool, library.multiply_rows):
        function.restype = None
    return library


def aligned(array: np.ndarray) -> np.ndarray:
    """Copy an array to a place that the compiled part can load from."""
    copy = empty(array.nbytes).view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def empty(n_bytes: int) -> np.ndarray:
    """Allocate (n_bytes,) uint8, aligned."""
    memory = np.empty(n_bytes + ALIGNMENT, np.uint8)
    offset = -memory.ctypes.data % ALIGNMENT
    return memory[offset : offset + n_bytes]
