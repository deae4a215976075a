"""A pipeline of spacy-curated-transformers: as it is, through spacy-accelerate, and converted.

    python -m benchmarks.any_model.accelerate TEXTS.spacy WORK --threads 1 --output DIR

The pipeline has the layout of `en_core_web_trf`: RoBERTa-base (12 layers, 768 wide) with a
byte-level BPE of its own, tagger, parser and ner, all of random weights. Its speed is that of
trained ones, its predictions mean nothing. Install the rival with `pip install --no-deps
spacy-accelerate onnxscript onnx-ir`, because its own requirements pin CUDA and TensorRT.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import spacy
import typer
from spacy.language import Language
from spacy.training import Example
from thinc.api import fix_random_seed
from tokenizers import ByteLevelBPETokenizer
from wasabi import msg

from benchmarks.any_model.timing import describe_threads, limit_threads, make_table, measure
from benchmarks.common.options import BatchSize, Docs, Limit, OptionalOutput, Repeats, Threads
from benchmarks.common.results import report_results, timestamp
from spacy_distil.errors import ConfigError, friendly_errors
from spacy_distil.export.convert import convert
from spacy_distil.export.quantize import quantize
from spacy_distil.pipelines import load_pipeline
from spacy_distil.text.documents import read_examples

WIDTH = 768
VOCABULARY = 50_265  # of RoBERTa
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
# The rival takes a pipeline by this name only.
NAME = "core_web_trf"


def make_curated(examples: list[Example], work: Path, n_layers: int) -> Language:
    """Make the pipeline. examples: give the pipes their labels, and the BPE its merges."""
    fix_random_seed(0)
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(
        (example.text for example in examples), vocab_size=20_000, special_tokens=SPECIAL
    )
    work.mkdir(parents=True, exist_ok=True)
    tokenizer.save_model(str(work))
    nlp = spacy.blank("en")
    curated = "spacy-curated-transformers"
    model = {
        "@architectures": f"{curated}.RobertaTransformer.v1",
        "vocab_size": VOCABULARY,
        "num_hidden_layers": n_layers,
        "piece_encoder": {"@architectures": f"{curated}.ByteBpeEncoder.v1"},
        "with_spans": {
            "@architectures": f"{curated}.WithStridedSpans.v1",
            "stride": 104,
            "window": 144,
        },
    }
    nlp.add_pipe("curated_transformer", name="transformer", config={"model": model})
    listener = {
        "@architectures": f"{curated}.LastTransformerLayerListener.v1",
        "width": WIDTH,
        "pooling": {"@layers": "reduce_mean.v1"},
        "upstream": "*",
    }
    nlp.add_pipe(
        "tagger", config={"model": {"@architectures": "spacy.Tagger.v2", "tok2vec": listener}}
    )
    for name in ("parser", "ner"):
        parser: dict[str, Any] = {
            "@architectures": "spacy.TransitionBasedParser.v2",
            "state_type": name,
            "extra_state_tokens": False,
            "hidden_width": 64,
            "maxout_pieces": 2,
            "use_upper": False,
            "tok2vec": listener,
        }
        nlp.add_pipe(name, config={"model": parser})
    nlp.config["initialize"]["components"]["transformer"] = {
        "piecer_loader": {
            "@model_loaders": f"{curated}.ByteBpeLoader.v1",
            "vocab_path": str(work / "vocab.json"),
            "merges_path": str(work / "merges.txt"),
        }
    }
    nlp.initialize(lambda: examples)
    nlp.config["initialize"]["components"] = {}
    nlp.meta["name"] = NAME
    return nlp


def import_rival() -> Any:
    try:
        return import_module("spacy_accelerate")
    except ImportError as error:
        raise ConfigError(
            "The rival is not installed. Install it with: pip install --no-deps spacy-accelerate "
            "onnxscript onnx-ir"
        ) from error


def vectors_of(nlp: Language, text: str) -> np.ndarray:
    """The last hidden states of a text, as a pipeline of spacy-curated-transformers keeps them."""
    return np.array(nlp(text)._.trf_data.last_hidden_layer_state.dataXd)


def main(
    docs: Docs,
    work: Annotated[Path, typer.Argument(help="Directory for the pipelines")],
    threads: Threads = 1,
    layers: Annotated[int, typer.Option(help="Layers of the encoder", min=1)] = 12,
    limit: Limit = 40,
    repeats: Repeats = 5,
    batch_size: BatchSize = 64,
    output: OptionalOutput = None,
) -> None:
    """Measure words/s of all sides, print the table and save it."""
    limit_threads(threads)
    date = timestamp()
    with friendly_errors():
        accelerate = import_rival()
        examples = list(read_examples(spacy.blank("en"), docs))
        if not (work / "curated").exists():
            make_curated(examples, work, layers).to_disk(work / "curated")
            convert(work / "curated", work / "converted", log=msg.info)
            quantize(work / "converted", work / "int8", min_agreement=0, log=msg.info)
        curated = load_pipeline(work / "curated")
        rival = accelerate.optimize(
            load_pipeline(work / "curated"),
            provider="cpu",
            precision="fp32",
            cache_dir=work / "rival",
        )
        text = examples[0].text[:200]
        difference = float(np.abs(vectors_of(curated, text) - vectors_of(rival, text)).max())
        if not difference < 1e-3:
            raise ConfigError(f"The rival's vectors differ from the original's by {difference}.")
        pipelines = {
            "spacy-curated-transformers": curated,
            "spacy-accelerate": rival,
            "converted, float32": load_pipeline(work / "converted"),
            "converted, int8": load_pipeline(work / "int8"),
        }
        chosen = examples[: limit or None]
        texts = [example.text for example in chosen]
        sides = {
            name: lambda texts, nlp=nlp: list(nlp.pipe(texts, batch_size=batch_size))
            for name, nlp in pipelines.items()
        }
        n_words = sum(len(curated.make_doc(text)) for text in texts)
        rounds = measure(sides, texts, n_words, repeats=repeats)
    where = describe_threads(threads)
    table = make_table(
        f"RoBERTa-base with tagger, parser and ner, {where}", rounds, "spacy-accelerate"
    )
    about = (
        f"{n_words:,} spaCy tokens in {len(texts)} documents, in batches of {batch_size}; median "
        f"and range of {repeats} rounds in turns, {where}. {layers} layers of random weights. "
        "spacy-accelerate on its CPU provider in float32."
    )
    data = {"n_words": n_words, "seconds": rounds.seconds, "threads": threads, "layers": layers}
    report_results(
        [table, about], data, output=output, stem=f"accelerate_{threads}_threads", date=date
    )


if __name__ == "__main__":
    typer.run(main)
