"""A token classifier of Hugging Face: in transformers' own pipeline, and converted.

    python -m benchmarks.any_model.classifier BTC ENCODER WORK --threads 1 --output DIR

The classifier is fine-tuned here on the Broad Twitter Corpus (Derczynski et al. 2016), on sections
a, b, e and g with IOB2 tags, and tested on section h. The first run makes it, converts it and
quantizes it to int8, in WORK. If `optimum` is installed, its ONNX pipeline is measured too (`pip
install --no-deps optimum==2.1.0 optimum-onnx`).
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import spacy
import torch
import transformers
import typer
from spacy.language import Language
from spacy.tokens import Doc, DocBin
from wasabi import msg

from benchmarks.any_model.timing import describe_threads, limit_threads, make_table, measure
from benchmarks.common.options import BatchSize, Encoder, Limit, OptionalOutput, Repeats, Threads
from benchmarks.common.results import report_results, timestamp
from benchmarks.pipeline_distillation.btc import read_tweets
from spacy_distil.errors import friendly_errors
from spacy_distil.pipelines import load_pipeline
from spacy_distil.tables import Table

TRAIN, DEV, TEST = "abeg", "f", "h"
TYPES = ("PER", "LOC", "ORG")
TAGS = ["O", *(f"{prefix}-{kind}" for kind in TYPES for prefix in "BI")]
REFERENCE = "transformers, batches of 32"
Entity = tuple[int, int, str]


def fine_tune(tweets: Sequence[Doc], encoder: Path, output: Path, *, epochs: float) -> None:
    """Fine-tune a token classifier on the first piece of each word, as the field does."""
    transformers.set_seed(0)  # of the new head; the trainer sets it again
    tokenizer = transformers.AutoTokenizer.from_pretrained(encoder)
    model = transformers.AutoModelForTokenClassification.from_pretrained(
        encoder, id2label=dict(enumerate(TAGS)), label2id={tag: i for i, tag in enumerate(TAGS)}
    )
    rows = [_encode(doc, tokenizer) for doc in tweets]
    arguments = transformers.TrainingArguments(
        output_dir=str(output.with_name("trainer")),
        num_train_epochs=epochs,
        per_device_train_batch_size=32,
        learning_rate=1e-4,
        warmup_ratio=0.1,
        weight_decay=0.01,
        save_strategy="no",
        report_to=[],
        seed=0,
        use_cpu=not torch.cuda.is_available(),
        group_by_length=True,
        disable_tqdm=True,
    )
    collate = transformers.DataCollatorForTokenClassification(tokenizer)
    trainer = transformers.Trainer(model, arguments, train_dataset=rows, data_collator=collate)
    trainer.train()
    tokenizer.model_max_length = 512
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)


def _encode(doc: Doc, tokenizer: Any) -> dict[str, Any]:
    words = [token.text for token in doc]
    row = tokenizer(words, is_split_into_words=True, truncation=True, max_length=128)
    tags = [f"{token.ent_iob_}-{token.ent_type_}" if token.ent_type_ else "O" for token in doc]
    labels, before = [], None
    for word in row.word_ids():
        is_first = word is not None and word != before
        labels.append(TAGS.index(tags[word]) if is_first else -100)
        before = word
    return {**row, "labels": labels}


def spans_of(doc: Doc) -> set[Entity]:
    return {(ent.start_char, ent.end_char, ent.label_) for ent in doc.ents}


def found_by(results: Iterable[dict[str, Any]]) -> set[Entity]:
    return {(one["start"], one["end"], one["entity_group"]) for one in results}


def f_score(predicted: Sequence[set[Entity]], gold: Sequence[set[Entity]]) -> float:
    """The F score of entities, over all tweets, in percent."""
    right = sum(len(ours & theirs) for ours, theirs in zip(predicted, gold, strict=True))
    return 200 * right / max(1, sum(map(len, predicted)) + sum(map(len, gold)))


def have_the_same_words(doc: Doc, tokenizer: Any) -> bool:
    """Whether each spaCy token is one word to transformers, which splits at punctuation."""
    encoding = tokenizer(doc.text, add_special_tokens=False)
    starts = {encoding.word_to_chars(word).start for word in set(encoding.word_ids())}
    return starts == {token.idx for token in doc if not token.is_space}


def predict(nlp: Language, tweets: Sequence[Doc]) -> list[Doc]:
    """Predict on the tokens of the corpus."""
    docs = [
        Doc(nlp.vocab, [t.text for t in doc], [bool(t.whitespace_) for t in doc]) for doc in tweets
    ]
    return list(nlp.pipe(docs, batch_size=64))


def agreement_table(
    theirs: Any, pipelines: dict[str, Language], tweets: Sequence[Doc]
) -> tuple[Table, dict[str, Any]]:
    """Compare entities with transformers' pipeline, and both with the annotation."""
    results = [found_by(each) for each in theirs([doc.text for doc in tweets], batch_size=32)]
    gold = [spans_of(doc) for doc in tweets]
    alike = [have_the_same_words(doc, theirs.tokenizer) for doc in tweets]
    rows: list[list[str]] = [["transformers", "", "", f"{f_score(results, gold):.1f}"]]
    data: dict[str, Any] = {"tweets": len(tweets), "alike": sum(alike)}
    for name, nlp in pipelines.items():
        own = [spans_of(doc) for doc in predict(nlp, tweets)]
        same = [a == b for a, b in zip(own, results, strict=True)]
        n_same = sum(one for one, counts in zip(same, alike, strict=True) if counts)
        rows.append(
            [name, f"{n_same:,} of {sum(alike):,}", f"{sum(same):,} of {len(same):,}",
             f"{f_score(own, gold):.1f}"]
        )  # fmt: skip
        data[name] = {"same": n_same, "same_of_all": sum(same), "f": f_score(own, gold)}
    head = ["", "the same entities, words alike", "all tweets", "F"]
    return Table("Entities in section h", head, rows), data


def main(
    corpus: Annotated[Path, typer.Argument(metavar="BTC", help="Directory of a.conll ... h.conll")],
    encoder: Encoder,
    work: Annotated[Path, typer.Argument(help="Directory for the models")],
    threads: Threads = 1,
    epochs: Annotated[float, typer.Option(help="Passes over the training tweets", min=0)] = 3,
    limit: Limit = 500,
    repeats: Repeats = 5,
    batch_size: BatchSize = 64,
    output: OptionalOutput = None,
) -> None:
    """Compare predictions and words/s of all sides, print the tables and save them."""
    limit_threads(threads)
    date = timestamp()
    with friendly_errors():
        vocab = spacy.blank("en").vocab
        sections = {
            name: [doc for each in name for doc in read_tweets(corpus / f"{each}.conll", vocab)]
            for name in (TRAIN, DEV, TEST)
        }
        _make(sections, encoder, work, epochs)
        classifier = _load(work / "classifier", transformers.AutoModelForTokenClassification)
        pipelines = {
            "converted, float32": load_pipeline(work / "converted"),
            "converted, int8": load_pipeline(work / "int8"),
        }
        agreement, data = agreement_table(classifier, pipelines, sections[TEST])
        texts = [doc.text for doc in sections[TEST]][: limit or None]
        sides: dict[str, Any] = {
            "transformers, one by one": lambda texts: [classifier(text) for text in texts],
            REFERENCE: lambda texts: list(classifier(list(texts), batch_size=32)),
        }
        if find_spec("optimum") is not None:
            optimum: Any = import_module("optimum.onnxruntime")
            exported = _load(
                work / "classifier", optimum.ORTModelForTokenClassification, export=True
            )
            sides["optimum's ONNX, batches of 32"] = lambda texts: list(
                exported(list(texts), batch_size=32)
            )
        for name, nlp in pipelines.items():
            sides[name] = lambda texts, nlp=nlp: list(nlp.pipe(texts, batch_size=batch_size))
            sides[f"{name}, one by one"] = lambda texts, nlp=nlp: [nlp(text) for text in texts]
        n_words = sum(len(pipelines["converted, int8"].make_doc(text)) for text in texts)
        rounds = measure(sides, texts, n_words, repeats=repeats)
    where = describe_threads(threads)
    table = make_table(f"A token classifier of 6 layers, 384 wide, {where}", rounds, REFERENCE)
    about = (
        f"{n_words:,} spaCy tokens in {len(texts)} tweets; median and range of {repeats} rounds in "
        f"turns, {where}. *Words alike*: tweets in which each token of the corpus is one word to "
        "transformers, which splits at punctuation."
    )
    data = {**data, "n_words": n_words, "seconds": rounds.seconds, "threads": threads}
    report_results(
        [agreement, table, about],
        data,
        output=output,
        stem=f"classifier_{threads}_threads",
        date=date,
    )


def _make(sections: dict[str, list[Doc]], encoder: Path, work: Path, epochs: float) -> None:
    """Make the models that are missing."""
    work.mkdir(parents=True, exist_ok=True)
    for name, file in ((DEV, "dev.spacy"), (TEST, "test.spacy")):
        DocBin(docs=sections[name]).to_disk(work / file)
    if not (work / "classifier").exists():
        fine_tune(sections[TRAIN], encoder, work / "classifier", epochs=epochs)
    source, converted = str(work / "classifier"), str(work / "converted")
    dev = str(work / "dev.spacy")
    commands = {
        "converted": ["convert", source, converted, "--lang", "en", "--corpus", dev],
        "int8": ["quantize", converted, str(work / "int8"), "--corpus", dev],
    }
    for name, arguments in commands.items():
        if not (work / name).exists():
            subprocess.run([sys.executable, "-m", "spacy", "distil", *arguments], check=True)
        msg.info(f"{name}: {work / name}")


def _load(directory: Path, model_class: Any, **settings: Any) -> Any:
    """Make transformers' own pipeline."""
    return transformers.pipeline(
        "token-classification",
        model=model_class.from_pretrained(directory, **settings),
        tokenizer=transformers.AutoTokenizer.from_pretrained(directory),
        aggregation_strategy="first",
        device="cpu",
    )


if __name__ == "__main__":
    typer.run(main)
