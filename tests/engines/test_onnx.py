from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx.external_data_helper import set_external_data
from thinc.api import NumpyOps

from spacy_distil import __version__
from spacy_distil.encoding import Batch, PieceTokenizer, make_batches
from spacy_distil.engines import TrainableEngine
from spacy_distil.engines.files import CONFIG, GRAPH, TOKENIZER, write_files
from spacy_distil.engines.onnx import SECTION, OnnxEngine, count_threads
from spacy_distil.engines.onnx_file import _read, _tensors
from spacy_distil.errors import ConfigError, WeightsError
from spacy_distil.export.encoders import SourceEncoder
from spacy_distil.export.graph import Precision
from tests.test_light_import import run_python
from tests.util import SENTENCES, WIDTH, encoder_of, make_nlp, write_encoder

OPS = NumpyOps()
Files = dict[str, bytes]


def convert(directory: Path, precision: Precision | None = None) -> Files:
    """Return the files of an encoder for the ONNX engine."""
    source = SourceEncoder(encoder_of(make_nlp(directory)))
    return source.to_files(precision or Precision())


@pytest.fixture(scope="module")
def files(encoder_dirs: dict[str, Path]) -> Files:
    return convert(encoder_dirs["bert"])


def batches_of(files: Files, texts: tuple[str, ...] = SENTENCES, budget: int = 90) -> list[Batch]:
    tokenizer = PieceTokenizer.from_str(files[TOKENIZER])
    return list(
        make_batches(
            [pieces.ids[:70] for pieces in tokenizer(texts)],
            prefix=tokenizer.prefix,
            suffix=tokenizer.suffix,
            pad_id=0,
            max_batch_pieces=budget,
        )
    )


def test_hidden_states_are_those_of_the_torch_engine(encoder_dir: Path) -> None:
    torch_engine = encoder_of(make_nlp(encoder_dir)).engine
    files = convert(encoder_dir)
    engine = OnnxEngine.from_files(files)
    assert engine.width == torch_engine.width == WIDTH
    assert engine.n_parameters == torch_engine.n_parameters
    assert engine.device_name == "cpu"
    assert not isinstance(engine, TrainableEngine)
    for batch in batches_of(files):
        found: Any = engine.predict(batch, OPS)
        assert (found.dtype, found.shape) == (np.float32, (len(batch.positions), WIDTH))
        expected: Any = torch_engine.predict(batch, OPS)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_files_round_trip(files: Files) -> None:
    engine = OnnxEngine.from_files(files)
    assert engine.to_files().keys() == {CONFIG, GRAPH}
    again = OnnxEngine.from_files(engine.to_files())
    assert again.to_files() == engine.to_files() == {name: files[name] for name in (CONFIG, GRAPH)}


# Errors


def change_section(**changes: Any) -> Callable[[Files], Files]:
    def change(files: Files) -> Files:
        config = json.loads(files[CONFIG])
        config[SECTION] = {**config[SECTION], **changes}
        return {**files, CONFIG: json.dumps(config).encode()}

    return change


def drop_section(files: Files) -> Files:
    config = json.loads(files[CONFIG])
    del config[SECTION]
    return {**files, CONFIG: json.dumps(config).encode()}


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (change_section(format=1), "1"),
        (change_section(format="2"), "'2'"),
        (change_section(format=None), "None"),
        (drop_section, "None"),
    ],
)
def test_another_format_is_named(
    files: Files, change: Callable[[Files], Files], found: str
) -> None:
    message = (
        f"model.onnx has format {found}, but spacy-distil {__version__} reads format 2. "
        "Make it again with 'spacy distil quantize'"
    )
    with pytest.raises(WeightsError, match=re.escape(message)):
        OnnxEngine.from_files(change(files))


@pytest.mark.parametrize("part", ["nothing", "half", "all but the end", "noise"])
def test_a_damaged_graph_is_named(files: Files, part: str) -> None:
    graph = files[GRAPH]
    damaged = {
        "nothing": b"",
        "half": graph[: len(graph) // 2],
        "all but the end": graph[:-1],
        "noise": np.random.default_rng(0).bytes(len(graph)),
    }[part]
    message = (
        rf"model\.onnx \({len(damaged):,} bytes\) "
        r"(cannot be run by ONNX Runtime [\d.]+: |is not an ONNX file, or is damaged)(.|\n)*"
        "save or copy the pipeline again"
    )
    with pytest.raises(WeightsError, match=message):
        OnnxEngine.from_files({**files, GRAPH: damaged})


def test_a_graph_of_another_width_is_named(files: Files, tmp_path: Path) -> None:
    other = convert(write_encoder(tmp_path, "bert", width=16))
    with pytest.raises(WeightsError, match=r"vectors of width 16, but config\.json says 32"):
        OnnxEngine.from_files({**files, GRAPH: other[GRAPH]})


@pytest.mark.parametrize("name", ["width", "n_parameters"])
@pytest.mark.parametrize("value", [None, "32", 0, -32, 32.0, True, []])
def test_a_number_that_cannot_be_right_is_named(files: Files, name: str, value: Any) -> None:
    message = f'config.json has "spacy_distil": {{"{name}": {value!r}}}, expected a whole number'
    with pytest.raises(WeightsError, match=re.escape(message)):
        OnnxEngine.from_files(change_section(**{name: value})(files))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_named(files: Files, value: float) -> None:
    model = onnx.load_from_string(files[GRAPH])
    weights = next(t for t in model.graph.initializer if len(t.dims) == 2)
    array = numpy_helper.to_array(weights).copy()
    array[1, 1] = value
    weights.CopyFrom(numpy_helper.from_array(array, weights.name))
    message = f"model.onnx: the weights '{weights.name}' have values that are not finite numbers"
    with pytest.raises(WeightsError, match=re.escape(message)):
        OnnxEngine.from_files({**files, GRAPH: model.SerializeToString()})


def test_a_graph_with_another_output_is_named(files: Files) -> None:
    model = onnx.load_from_string(files[GRAPH])
    between = model.graph.node[len(model.graph.node) // 2].output[0]
    model.graph.output.append(onnx.ValueInfoProto(name=between))
    message = f"inputs ids, mask, positions and the outputs rows, {between}, expected ids, mask and"
    with pytest.raises(WeightsError, match=re.escape(message)):
        OnnxEngine.from_files({**files, GRAPH: model.SerializeToString()})


def external(tensor: onnx.TensorProto, path: Path) -> onnx.TensorProto:
    """Keep the values of a tensor in a file, as a graph of more than 2 GB does."""
    path.write_bytes(tensor.raw_data)
    found = onnx.TensorProto()
    found.CopyFrom(tensor)
    set_external_data(found, path.name)
    found.ClearField("raw_data")
    found.data_location = onnx.TensorProto.EXTERNAL
    return found


@pytest.mark.parametrize("place", ["initializer", "node", "sub-graph"])
def test_tensors_outside_of_the_file_are_refused(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """ONNX Runtime would read them from the working directory."""
    monkeypatch.chdir(tmp_path)
    model = onnx.load_from_string(files[GRAPH])
    weights = next(t for t in model.graph.initializer if len(t.dims) == 2)
    outside = external(weights, tmp_path / "weights.bin")
    constant = onnx.helper.make_node("Constant", [], ["unused"], value=outside)
    if place == "initializer":
        weights.CopyFrom(outside)
    elif place == "node":
        model.graph.node.insert(0, constant)
    else:
        branch = onnx.helper.make_graph([constant], "branch", [], [])
        model.graph.node.insert(
            0, onnx.helper.make_node("If", ["x"], [], then_branch=branch, else_branch=branch)
        )
    message = f"model.onnx keeps the tensor '{weights.name}' in another file, which is not read"
    with pytest.raises(WeightsError, match=re.escape(message)):
        OnnxEngine.from_files({**files, GRAPH: model.SerializeToString()})


def test_int8_graphs_pass(encoder_dirs: dict[str, Path]) -> None:
    int8 = convert(encoder_dirs["bert"], Precision(frozenset(range(3)), embeddings=True))
    OnnxEngine.from_files(int8)
    names = {tensor.name for tensor in onnx.load_from_string(int8[GRAPH]).graph.initializer}
    read = {_read(tensor)[0] for tensor in _tensors(memoryview(int8[GRAPH]), "model")}
    assert names <= read


# Threads


def test_threads_share_an_engine(files: Files) -> None:
    engine = OnnxEngine.from_files(files, threads=2)
    batches = batches_of(files)
    expected: list[Any] = [engine.predict(batch, OPS) for batch in batches]

    def work(i: int) -> bool:
        found: Any = engine.predict(batches[i % len(batches)], OPS)
        return np.array_equal(found, expected[i % len(batches)])

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(200)))


def test_a_session_has_as_many_threads_as_asked_for(files: Files, tmp_path: Path) -> None:
    """Count its threads, with the calling one, in a process in which no others come and go."""
    if not Path("/proc/self/task").is_dir():
        pytest.skip("needs Linux's list of threads")
    write_files(tmp_path, files)
    out = run_python(
        f"""
        from pathlib import Path
        from spacy_distil.engines.files import read_files
        from spacy_distil.engines.onnx import OnnxEngine

        files = read_files(Path({str(tmp_path)!r}), "onnx")
        tasks = Path("/proc/self/task")
        engines = [OnnxEngine.from_files(files, threads=1)]  # imports may start other threads
        for threads in (1, 2, 4):
            before = len(list(tasks.iterdir()))
            engines.append(OnnxEngine.from_files(files, threads=threads))
            print(len(list(tasks.iterdir())) - before)
        """,
        block=True,
    )
    assert out.split() == ["0", "1", "3"]


@pytest.mark.parametrize(
    ("setting", "variable", "expected"),
    [(None, "3", 3), (None, " 2,1 ", 2), (2, "3", 2), (5, None, 5), (1, "many", 1)],
)
def test_number_of_threads(
    monkeypatch: pytest.MonkeyPatch, setting: int | None, variable: str | None, expected: int
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if variable is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    assert count_threads(setting) == expected


@pytest.mark.parametrize("variable", ["many", "0", "-1", "1.5", "²"])
def test_a_variable_that_is_no_number_of_threads(
    monkeypatch: pytest.MonkeyPatch, files: Files, variable: str
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", variable)
    with pytest.raises(ConfigError, match=f"OMP_NUM_THREADS = '{variable}': expected a number"):
        OnnxEngine.from_files(files)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_worker_process_has_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless a setting says otherwise."""
    monkeypatch.setenv("OMP_NUM_THREADS", "")
    out = run_python(
        """
        import multiprocessing
        from spacy_distil.engines.onnx import count_threads

        with multiprocessing.get_context("fork").Pool(1) as pool:
            print(*pool.map(count_threads, [None, 2]))
        """,
        block=True,
    )
    assert out.split() == ["1", "2"]


@pytest.mark.skipif(sys.platform != "linux", reason="processes are not bound to cores here")
def test_a_process_bound_to_some_cores_has_as_many_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    cores = os.sched_getaffinity(0)
    if len(cores) == os.cpu_count():
        assert count_threads(None) == 0
        if len(cores) == 1:
            return
    try:
        os.sched_setaffinity(0, {min(cores)})
        assert count_threads(None) == 1
    finally:
        os.sched_setaffinity(0, cores)
