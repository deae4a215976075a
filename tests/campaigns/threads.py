"""One pipeline in several threads, in processes forked and spawned meanwhile, in asyncio tasks, and
behind streams that nobody reads to their end.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from spacy_distil.export.quantize import quantize
from tests.campaigns import _threads_worker as worker
from tests.campaigns.outcome import Deadline, Outcome
from tests.util import initialize_nlp, make_nlp, write_encoder

PROMISE = (
    "Threads, tasks of asyncio, processes that are spawned, or forked while threads encode, and "
    "streams that are dropped, closed or continued elsewhere share one pipeline: results are those "
    "of one thread (with int8 to the last bit), nothing hangs, and nothing is printed."
)
SHORT = len(worker.ENGINES) * len(worker.ALL_KINDS)


def run(n: int, seed: int, deadline: Deadline) -> Outcome:
    """Run n cases, one kind and engine after another. Each engine has a process of its own."""
    outcome, kinds, start = Outcome(), Counter(), time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        paths = write_pipelines(Path(name))
        for engine, path in paths.items():
            cases = [i for i in range(n) if worker.engine_of(i) == engine]
            while cases and not deadline.passed():
                cases = _run_cases(engine, path, seed, cases, deadline, outcome, kinds)
    outcome.figures["seconds"] = f"{time.monotonic() - start:.0f}"
    outcome.figures |= {kind: str(count) for kind, count in kinds.items()}
    return outcome


def write_pipelines(root: Path) -> dict[str, Path]:
    """Write a pipeline with random weights, for torch and in int8. RETURNS: paths by engine."""
    nlp = make_nlp(
        write_encoder(root / "bert", "bert", width=64),
        ["tagger", "ner", "textcat"],
        initialize=False,
    )
    tok2vec = {"@architectures": "spacy-distil.Listener.v1"}
    model = {"@architectures": "spacy.Tagger.v2", "tok2vec": tok2vec}
    nlp.add_pipe("distil_ner", before="ner", config={"model": model})
    initialize_nlp(nlp)
    nlp.to_disk(root / "torch")
    quantize(root / "torch", root / "onnx")
    return {engine: root / engine for engine in worker.ENGINES}


def _run_cases(
    engine: str,
    path: Path,
    seed: int,
    cases: list[int],
    deadline: Deadline,
    outcome: Outcome,
    kinds: Counter[str],
) -> list[int]:
    """Run cases in a new process until one of them kills it. RETURNS: the cases that are left."""
    command = [sys.executable, "-m", worker.__name__, str(path), str(seed), json.dumps(cases)]
    # Threads of OpenMP that wait for each other must not keep the cores from those that work.
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive"}
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        left = list(cases)
        for line in process.stdout:
            case, failure = json.loads(line)
            assert case == left.pop(0)
            outcome.cases += 1
            kinds[worker.kind_of(case)] += 1
            if failure:
                outcome.failures.append(_describe(case, engine, failure))
            print("stop" if deadline.passed() else "go", file=process.stdin, flush=True)
            if deadline.passed():
                break
        process.wait()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # children that hang
        _, printed = process.communicate()
    if process.returncode and left:
        outcome.cases += 1
        outcome.failures.append(_describe(left.pop(0), engine, f"killed: {printed}"))
    elif printed:
        outcome.failures.append(f"{engine}, at the end: printed {printed}")
    return left


def _describe(case: int, engine: str, failure: str) -> str:
    return f"case {case} ({worker.kind_of(case)}, {engine}): {failure}"
