"""The compiled steps behind an encoder, against numpy."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from thinc.api import Linear, Model, NumpyOps, chain

from spacy_distil.encoding import Pooling
from spacy_distil.engines.fused import library, use_head_ops
from spacy_distil.engines.fused.rows import HeadOps, sum_rows

needs_compiled = pytest.mark.skipif(
    library.load() is None, reason="has no compiled part, or a CPU without AVX-512 VNNI"
)


@needs_compiled
@given(st.lists(st.lists(st.integers(0, 3), max_size=5), max_size=6), st.integers(0, 2**32 - 1))
@settings(max_examples=100)
def test_sums_of_rows(docs: list[list[int]], seed: int) -> None:
    """docs: the number of rows of each token."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(7, 128)).astype("f")
    lengths = np.array([n for doc in docs for n in doc], dtype="i")
    columns = rng.integers(0, 7, lengths.sum())
    pooling = Pooling(columns, rng.normal(size=len(columns)).astype("f"), lengths, 7)
    expected, _ = pooling.forward(NumpyOps(), rows)
    found = sum_rows(rows, pooling, [len(doc) for doc in docs])
    assert [len(vectors) for vectors in found] == [len(doc) for doc in docs]
    assert all(vectors.base is None for vectors in found)
    np.testing.assert_allclose(
        np.concatenate([*found, np.zeros((0, 128))]), expected, rtol=0, atol=1e-5
    )


@needs_compiled
@given(st.integers(0, 14), st.integers(1, 100), st.integers(0, 260), st.integers(0, 2**32 - 1))
@settings(max_examples=200)
def test_products_of_heads(n: int, n_in: int, n_out: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n, n_in)).astype("f"), rng.normal(size=(n_out, n_in)).astype("f")
    found = HeadOps().gemm(x, y, trans2=True)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, x.astype("d") @ y.T.astype("d"), rtol=0, atol=1e-4)
    # One row depends on itself alone, to the last bit.
    for row in range(n):
        alone = HeadOps().gemm(x[row : row + 1], y, trans2=True)
        np.testing.assert_array_equal(alone, found[row : row + 1])


def test_other_products_are_thincs() -> None:
    rng = np.random.default_rng(0)
    x, y, z = (rng.normal(size=(5, 5)).astype("f") for _ in range(3))
    ours, thincs = HeadOps(), NumpyOps()
    for options in ({}, {"trans1": True}, {"trans1": True, "trans2": True}):
        np.testing.assert_array_equal(ours.gemm(x, y, **options), thincs.gemm(x, y, **options))
    assert ours.gemm(x, y, out=z, trans2=True) is z
    np.testing.assert_array_equal(z, thincs.gemm(x, y, trans2=True))
    with pytest.raises(ValueError, match="float32"):
        ours.gemm(x.astype("d"), y, trans2=True)
    with pytest.raises(ValueError, match=r"[Ss]hape"):
        ours.gemm(x, y[:, :4], trans2=True)


def test_strided_matrices() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(6, 40)).astype("f")[:, ::2], rng.normal(size=(20, 9)).astype("f").T
    np.testing.assert_allclose(HeadOps().gemm(x, y, trans2=True), x @ y.T, rtol=0, atol=1e-4)


def test_heads_learn_the_same() -> None:
    """With the products compiled, and copied or pickled."""
    models: list[Model] = [chain(Linear(9, 7), Linear(3, 9)) for _ in range(2)]
    rng = np.random.default_rng(0)
    x, d_y = rng.normal(size=(4, 7)).astype("f"), rng.normal(size=(4, 3)).astype("f")
    for model in models:
        model.initialize(X=x, Y=d_y)
    models[0].from_bytes(models[1].to_bytes())
    use_head_ops(models[0])
    assert all(type(node.ops) is HeadOps for node in models[0].walk())
    assert all(type(node.ops) is NumpyOps for node in models[1].walk())
    for ours in (models[0], models[0].copy(), pickle.loads(pickle.dumps(models[0]))):
        results = []
        for model in (ours, models[1]):
            y, backprop = model.begin_update(x)
            results.append((y, backprop(d_y)))
        for found, expected in zip(*results, strict=True):
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_operations_of_others_stay() -> None:
    class OtherOps(NumpyOps):
        pass

    model = Linear(2, 2)
    model.ops = OtherOps()
    use_head_ops(model)
    assert type(model.ops) is OtherOps
