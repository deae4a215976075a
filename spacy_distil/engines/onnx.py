"""The ONNX engine: runs a frozen encoder on the CPU without torch."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast
from weakref import WeakSet

import numpy as np
from thinc.api import Ops
from thinc.types import Floats2d

from spacy_distil import __version__
from spacy_distil.encoding import Batch, to_ops
from spacy_distil.engines.files import (
    CONFIG,
    GRAPH,
    dump_config,
    forget_pages,
    join_parts,
    parse_config,
)
from spacy_distil.engines.onnx_file import check_tensors
from spacy_distil.errors import ConfigError, WeightsError
from spacy_distil.runs.digests import Content, Parts

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

# Names of the graph's inputs, and of its output.
IDS, MASK, POSITIONS, ROWS = "ids", "mask", "positions", "rows"
# An input of graphs that know a second token type.
SECONDS = "seconds"
# The arrays of a layer should fit into a core's cache.
BATCH_PIECES = 512
# The section of config.json for this engine, and the version of its format.
SECTION = "spacy_distil"
FORMAT = 2


class FrozenEngine:
    """The base of the engines for a graph. It keeps the content of its file, to save it.

    runtime: who runs the encoder, for users to read.
    """

    runtime: ClassVar[Literal["onnxruntime", "fused"]]

    def __init__(self, config: Mapping[str, Any], graph: Content, *, threads: int | None) -> None:
        """config: contents of `config.json`.

        graph: a serialized model, built by `spacy_distil.export.families`.
        threads: CPU threads; None to read the environment, see `count_threads`.
        """
        self._config = dict(config)
        self._graph = graph
        self._threads = threads

    @property
    def width(self) -> int:
        return int(self._config[SECTION]["width"])

    @property
    def n_parameters(self) -> int:
        return int(self._config[SECTION]["n_parameters"])

    @property
    def n_token_types(self) -> int:
        return int(self._config[SECTION].get("n_token_types", 1))

    @property
    def device_name(self) -> str:
        return "cpu"

    @property
    def length_multiple(self) -> int:
        return 1

    def to_parts(self) -> dict[str, Parts]:
        return {CONFIG: [dump_config(self._config)], GRAPH: [self._graph]}

    def to_files(self) -> dict[str, bytes]:
        return join_parts(self.to_parts())


class OnnxEngine(FrozenEngine):
    """An encoder as an ONNX graph, float32 or int8, that ONNX Runtime runs.

    The engine opens a session in each process, because a session can be neither pickled nor used
    after a fork. One session serves any number of threads at once.
    """

    runtime = "onnxruntime"
    _alive: ClassVar[WeakSet[OnnxEngine]] = WeakSet()

    def __init__(self, config: Mapping[str, Any], graph: Content, *, threads: int | None) -> None:
        super().__init__(config, graph, threads=threads)
        self._opened: InferenceSession | None = None
        self._lock = threading.Lock()
        self._alive.add(self)

    @classmethod
    def from_files(cls, files: Mapping[str, Content], *, threads: int | None = None) -> OnnxEngine:
        """Load what `to_files` returned.

        Raises WeightsError if it is damaged or has another format.
        """
        config = check_files(files)
        engine = cls(config, files[GRAPH], threads=threads)
        # Open the session now, so that a graph that cannot run is found while loading.
        _check_graph(
            engine._session(), config[SECTION]["width"], has_seconds=engine.n_token_types > 1
        )
        forget_pages(files[GRAPH])  # the session has a copy
        return engine

    @property
    def batch_pieces(self) -> int:
        return BATCH_PIECES

    def predict(self, batch: Batch, ops: Ops) -> Floats2d:
        feed = {IDS: batch.ids, MASK: batch.mask, POSITIONS: batch.positions}
        if self.n_token_types > 1:
            n_windows, length = batch.ids.shape
            feed[SECONDS] = np.full(n_windows, length) if batch.seconds is None else batch.seconds
        (rows,) = self._session().run([ROWS], feed)
        return cast(Floats2d, to_ops(ops, rows))

    def _session(self) -> InferenceSession:
        if self._opened is None:
            with self._lock:
                if self._opened is None:
                    self._opened = self._open()
        return self._opened

    @classmethod
    def _forget_sessions(cls) -> None:
        """Drop all sessions in a forked child, which does not have their threads.

        Deleting a session would wait for its threads forever, so it gets an extra reference and is
        never deleted. Locks are replaced, because a thread of the parent may hold one.
        """
        for engine in cls._alive:
            if engine._opened is not None:
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(engine._opened))
            engine._opened = None
            engine._lock = threading.Lock()

    def _open(self) -> InferenceSession:
        # Since 1.29 ONNX Runtime sends telemetry from a thread, for which every forked child waits
        # when it ends. This variable, set before the import, prevents both.
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = count_threads(self._threads)
        options.inter_op_num_threads = 1
        # The graph has its final operators already. The optimizer would bring back slower ones.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 3
        try:
            return onnxruntime.InferenceSession(
                bytes(self._graph), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime's errors have no base class
            raise WeightsError(
                f"{GRAPH} ({len(self._graph):,} bytes) cannot be run by ONNX Runtime "
                f"{onnxruntime.__version__}: {error}. It is damaged, or needs a newer version: "
                "save or copy the pipeline again, or update onnxruntime."
            ) from error


def check_files(files: Mapping[str, Content]) -> dict[str, Any]:
    """Check the files of an engine, apart from what only running the graph shows.

    RETURNS: the content of `config.json`.
    Raises WeightsError as `OnnxEngine.from_files`.
    """
    config = parse_config(files)
    section = config.get(SECTION)
    if not isinstance(section, dict):
        section = {}
    if section.get("format") != FORMAT:
        raise WeightsError(
            f"{GRAPH} has format {section.get('format')!r}, but spacy-distil {__version__} "
            f"reads format {FORMAT}. Make it again with 'spacy distil quantize' from the "
            "original pipeline."
        )
    for name in ("width", "n_parameters"):
        value = section.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise WeightsError(
                f'{CONFIG} has "{SECTION}": {{"{name}": {value!r}}}, expected a whole number '
                "above 0. It is damaged: save or copy the pipeline again."
            )
    check_tensors(files[GRAPH], GRAPH)
    return config


def _check_graph(session: InferenceSession, width: int, *, has_seconds: bool) -> None:
    """Raise WeightsError if a graph has other inputs or outputs than the engine uses."""
    inputs = sorted(node.name for node in session.get_inputs())
    outputs = [node.name for node in session.get_outputs()]
    expected = sorted([IDS, MASK, POSITIONS, *([SECONDS] if has_seconds else [])])
    if inputs != expected or outputs != [ROWS]:
        raise WeightsError(
            f"{GRAPH} has the inputs {', '.join(inputs)} and the outputs {', '.join(outputs)}, "
            f"expected {', '.join(expected[:-1])} and {expected[-1]}, and {ROWS} alone. Make it "
            "again with 'spacy distil quantize'."
        )
    made = session.get_outputs()[0].shape[-1:]
    check_width(made[0] if made else "unknown", width)


def check_width(made: int | str, width: int) -> None:
    """Raise WeightsError if a graph makes vectors of another width than its config says."""
    if made != width:
        raise WeightsError(
            f"{GRAPH} makes vectors of width {made}, but {CONFIG} says {width}. They do not belong "
            "together."
        )


def count_cores() -> int:
    """Count the physical cores of this machine, where the system tells which threads share one."""
    siblings = Path("/sys/devices/system/cpu").glob("cpu[0-9]*/topology/thread_siblings_list")
    with contextlib.suppress(OSError):
        cores = {path.read_text() for path in siblings}
        if cores:
            return len(cores)
    return os.cpu_count() or 1


def count_threads(setting: int | None) -> int:
    """Return the number of threads for a session; 0 is one per physical core.

    The first of these that applies: the setting; OMP_NUM_THREADS; 1 in a worker process of
    `n_process`, since its siblings use the other cores; the number of cores that this process may
    use, if that is not all of them; 0.

    Raises ConfigError if OMP_NUM_THREADS is not a number.
    """
    if setting is not None:
        return setting
    # OpenMP allows a list of numbers, one for each level of nesting.
    variable = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if variable:
        if not variable.isdecimal() or not int(variable):
            raise ConfigError(
                f"OMP_NUM_THREADS = {os.environ['OMP_NUM_THREADS']!r}: expected a number of "
                "threads, 1 or more."
            )
        return int(variable)
    if multiprocessing.parent_process() is not None:
        return 1
    # ONNX Runtime counts all cores, including those that `taskset` or a container excludes.
    if hasattr(os, "sched_getaffinity") and os.cpu_count() != len(os.sched_getaffinity(0)):
        return len(os.sched_getaffinity(0))
    return 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=OnnxEngine._forget_sessions)
