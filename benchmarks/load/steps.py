"""The steps that are measured, each in a process of its own.

    python -m benchmarks.load.steps STEP SOURCE [TARGET]

It prints measurements as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

TEXT = "Angela Merkel wohnt in Berlin."


@dataclass(frozen=True)
class Measurement:
    """What a step took.

    peak_bytes: the most by which resident memory grew.
    kept_bytes: by how much it has grown at the end.
    """

    step: str
    seconds: float
    cpu_seconds: float
    peak_bytes: int
    kept_bytes: int


def measure(step: str, do: Callable[[], Any], found: list[Measurement]) -> Any:
    """Measure a step. Linux only. RETURNS: its result."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before, start, cpu_start = _status("VmRSS"), time.perf_counter(), time.process_time()
    result = do()
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    # Linux counts pages in batches for each thread, so the peak may come out below the start.
    peak, kept = max(0, _status("VmHWM") - before), _status("VmRSS") - before
    found.append(Measurement(step, seconds, cpu_seconds, peak, kept))
    return result


def _status(key: str) -> int:
    """Read bytes from the status of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def load_plainly(source: str) -> Any:
    """Load an encoder and its tokenizer with transformers and tokenizers alone."""
    import tokenizers
    import torch
    import transformers

    model = transformers.AutoModel.from_pretrained(source, use_safetensors=True)
    tokenizer = tokenizers.Tokenizer.from_file(f"{source}/tokenizer.json")
    with torch.inference_mode():
        model(torch.tensor([tokenizer.encode(TEXT).ids]))
    return model, tokenizer


def build(source: str) -> Any:
    """Make a pipeline of an encoder and a small pipe, not yet initialized."""
    import spacy

    nlp = spacy.blank("xx")
    model = {
        "@architectures": "spacy-distil.DistilTransformer.v1",
        "name": source,
        "device": "cpu",
    }
    nlp.add_pipe("distil_transformer", config={"model": model})
    ner: Any = nlp.add_pipe("distil_ner")
    for label in ("PER", "LOC", "ORG"):
        ner.add_label(label)
    return nlp


def main(step: str, source: str, target: str | None = None) -> None:
    # The imports are not part of the measurement.
    import spacy
    import tokenizers  # noqa: F401
    import torch  # noqa: F401
    import transformers

    import spacy_distil.component.pipe
    import spacy_distil.engines.frozen
    import spacy_distil.engines.torch
    import spacy_distil.ner.pipe  # noqa: F401

    transformers.logging.set_verbosity_error()
    spacy.blank("xx")  # imports all packages that add to spaCy
    found: list[Measurement] = []
    if step == "plain":
        measure("transformers and tokenizers alone", lambda: load_plainly(source), found)
    elif step == "initialize":
        nlp = build(source)
        measure("nlp.initialize", nlp.initialize, found)
        measure("nlp.to_disk", lambda: nlp.to_disk(str(target)), found)
    elif step == "quantize":
        from spacy_distil.export.quantize import quantize

        def run() -> Any:
            # The pipe is not trained, so its predictions say nothing.
            return quantize(source, Path(str(target)), min_agreement=0.0, log=lambda _: None)

        measure("quantize", run, found)
    else:
        loaded = measure(f"spacy.load, {step}", lambda: spacy.load(source), found)
        measure(f"first document, {step}", lambda: loaded(TEXT), found)
        data = measure(f"nlp.to_bytes, {step}", loaded.to_bytes, found)
        measure(f"nlp.from_bytes, {step}", lambda: loaded.from_bytes(data), found)
    print(json.dumps([asdict(each) for each in found]))


if __name__ == "__main__":
    main(*sys.argv[1:])
