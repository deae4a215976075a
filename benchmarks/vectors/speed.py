"""Time vectors of texts beside sentence-transformers with its int8 ONNX backend, in turns.

    pip install sentence-transformers optimum-onnx
    OMP_NUM_THREADS=1 taskset -c 0 python -m benchmarks.vectors.speed PIPELINE MODEL TEXTS

MODEL is the folder of the sentence-transformers model. Its graph is exported and quantized there
for AVX-512 VNNI, if it has none. Each of the two runs in a process of its own.
"""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Annotated, Any

import numpy as np
import spacy
import typer
from wasabi import msg

from benchmarks.common.results import report_results, timestamp
from spacy_distil.errors import friendly_errors
from spacy_distil.tables import Table
from spacy_distil.text.documents import read_documents

GRAPH = "onnx/model_qint8_avx512_vnni.onnx"
BATCH_SIZE = 64
_loaded: Any = None


def load_pipeline(path: str) -> None:
    """Load our pipeline into this process."""
    global _loaded
    _loaded = spacy.load(path)


def load_model(path: str) -> None:
    """Load the other model into this process; export and quantize it first, if needed."""
    global _loaded
    rival = import_module("sentence_transformers")  # nothing else here needs it
    if not (Path(path) / GRAPH).is_file():
        model = rival.SentenceTransformer(path, backend="onnx", model_kwargs={"export": True})
        model.save_pretrained(path)
        rival.export_dynamic_quantized_onnx_model(model, "avx512_vnni", path)
    _loaded = rival.SentenceTransformer(path, backend="onnx", model_kwargs={"file_name": GRAPH})


def run_pipeline(texts: list[str]) -> tuple[float, np.ndarray]:
    """Make vectors with our pipeline. RETURNS: (seconds, vectors)."""
    start = perf_counter()
    vectors: list[Any] = [doc.vector for doc in _loaded.pipe(texts, batch_size=BATCH_SIZE)]
    return perf_counter() - start, np.stack(vectors)


def run_model(texts: list[str]) -> tuple[float, np.ndarray]:
    """Make vectors with the other model. RETURNS: (seconds, vectors)."""
    start = perf_counter()
    vectors = _loaded.encode(texts, batch_size=BATCH_SIZE)
    return perf_counter() - start, vectors


def main(
    pipeline: Annotated[Path, typer.Argument(help="Pipeline with distil_vectors")],
    model: Annotated[Path, typer.Argument(help="Folder of a sentence-transformers model")],
    texts: Annotated[Path, typer.Argument(help=".txt or .jsonl file")],
    limit: Annotated[int, typer.Option(help="Texts to read")] = 2000,
    rounds: Annotated[int, typer.Option(help="Passes of each")] = 7,
    output: Annotated[Path | None, typer.Option(help="Directory for the results")] = None,
    stem: Annotated[str, typer.Option(help="Name of the files")] = "speed",
) -> None:
    """Time both."""
    with friendly_errors():
        date = timestamp()
        docs = read_documents(texts, spacy.blank("en"), limit=limit).docs
        read, n_words = [doc.text for doc in docs], sum(map(len, docs))
        context = multiprocessing.get_context("spawn")
        workers = {
            "spacy-distil, int8": (load_pipeline, str(pipeline), run_pipeline),
            "sentence-transformers, int8 ONNX": (load_model, str(model), run_model),
        }
        pools = {
            name: ProcessPoolExecutor(1, context, load, (path,))
            for name, (load, path, _) in workers.items()
        }
        seconds: dict[str, list[float]] = {name: [] for name in workers}
        vectors: dict[str, np.ndarray] = {}
        for number in range(rounds + 1):  # the first one warms up
            for name, (_, _, run) in workers.items():
                took, vectors[name] = pools[name].submit(run, read).result()
                if number:
                    seconds[name].append(took)
            msg.info(f"Round {number} of {rounds}")
        for pool in pools.values():
            pool.shutdown()
        one, other = vectors.values()
        norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
        same = one.shape == other.shape
        cosine = float(((one * other).sum(axis=1) / norms).mean()) if same else None
        rows = []
        for name, own in seconds.items():
            rates = sorted(n_words / each for each in own)
            rows.append([name, f"{median(rates):,.0f}", f"{rates[0]:,.0f} to {rates[-1]:,.0f}"])
        table = Table("Words/s", ["vectors by", "words/s", "range"], rows)
        note = (
            f"{len(read):,} texts, {n_words:,} spaCy tokens, in batches of {BATCH_SIZE}; median of "
            f"{rounds} passes of each, in turns. Ours makes spaCy docs, too."
        )
        if cosine is not None:
            note += f" Mean cosine of the two: {cosine:.4f}."
        data = {"seconds": seconds, "words": n_words, "texts": len(read), "cosine": cosine}
        report_results([table, note], data, output=output, stem=stem, date=date)


if __name__ == "__main__":
    typer.run(main)
