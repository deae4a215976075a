"""Turn a dataset into the files that the project trains on.

    python -m scripts.corpus {sample,ewt,custom} OUT_DIR [...]

writes `train.spacy`, `dev.spacy`, `test.spacy`, `unlabelled.txt` (one paragraph per line, a blank
line between documents) and `corpus.json`, with counts of the annotation and of what was left out.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, TypeVar

import spacy
import typer
from spacy.language import Language
from spacy.tokens import Doc, DocBin
from wasabi import msg

from scripts._conllu import Document, join_entities, read_conllu, read_iob2, read_lines, repair_iob
from scripts._custom import read_docs
from scripts._notes import Notes
from spacy_distil.errors import CorpusError, friendly_errors

SPLITS = ("train", "dev", "test")
GENRES = ("answers", "email", "newsgroup", "reviews", "weblog")
SAMPLE = Path(__file__).resolve().parents[1] / "corpus" / "sample"
# Annotation that is stored: the layers that the pipelines learn.
ATTRS = ("ORTH", "SPACY", "POS", "TAG", "ENT_IOB", "ENT_TYPE", "SENT_START")
HELD_OUT = 0.1

T = TypeVar("T")


class Dataset(str, Enum):
    sample = "sample"
    ewt = "ewt"
    custom = "custom"


@dataclass
class Corpus:
    """The three splits and the unlabelled text of a dataset.

    docs, notes: by split.
    unlabelled: documents, each a list of paragraphs.
    """

    docs: dict[str, list[Doc]]
    notes: dict[str, Notes]
    unlabelled: list[list[str]] = field(default_factory=list)


# --- treebanks ----------------------------------------------------------------------------------


def treebank_doc(
    document: Document, tags: Sequence[str], cats: dict[str, float], nlp: Language
) -> Doc:
    """Make one `Doc` of a document of a treebank. Its tokens are the syntactic words.

    tags: IOB2, one per word, "" for unknown.
    """
    words: list[str] = []
    spaces: list[bool] = []
    starts: list[bool | int | None] = []
    for sentence in document.sentences:
        if spaces and sentence.paragraph:
            spaces[-1] = True
        starts.extend([True] + [False] * (len(sentence.words) - 1))
        words.extend(sentence.words)
        spaces.extend(sentence.spaces)
    spaces[-1] = False
    doc = Doc(
        nlp.vocab,
        words=words,
        spaces=spaces,
        pos=[pos for sentence in document.sentences for pos in sentence.upos],
        tags=[tag for sentence in document.sentences for tag in sentence.xpos],
        sent_starts=starts,
        ents=list(tags),
    )
    doc.cats = cats
    return doc


def one_hot(label: str, labels: Iterable[str]) -> dict[str, float]:
    return {name: float(name == label) for name in labels}


def read_ewt(assets: Path, nlp: Language, *, limit: int = 0) -> Corpus:
    """Read UD English EWT with the entities of Universal NER. The category is the genre.

    assets: directory with `en_ewt-ud-{train,dev,test}.{conllu,iob2}`.
    """
    corpus = Corpus(docs={}, notes={})
    for split in SPLITS:
        notes = corpus.notes[split] = Notes()
        path = assets / f"en_ewt-ud-{split}.conllu"
        documents = read_conllu(path, notes)
        named = read_iob2(path.with_suffix(".iob2"), notes)
        tags = join_entities(documents, named, notes)
        docs = []
        for document, document_tags in spread(list(zip(documents, tags, strict=True)), limit):
            genre = document.name.split("-")[0]
            if genre not in GENRES:
                raise CorpusError(
                    f"{path}: document '{document.name}' has genre '{genre}', "
                    f"expected one of {', '.join(GENRES)}"
                )
            docs.append(treebank_doc(document, document_tags, one_hot(genre, GENRES), nlp))
            if split == "train":
                corpus.unlabelled.append(document.paragraphs())
        corpus.docs[split] = docs
    return corpus


def read_sample(directory: Path, nlp: Language, *, limit: int = 0) -> Corpus:
    """Read the corpus of the project: topics are in comments, entities in the MISC column."""
    corpus = Corpus(docs={}, notes={}, unlabelled=list(read_text(directory / "unlabelled.txt")))
    topics: list[str] = []
    for split in SPLITS:
        notes = corpus.notes[split] = Notes()
        documents = read_conllu(directory / f"{split}.conllu", notes)
        if not topics:
            topics = sorted({document.meta["topic"] for document in documents})
        docs = []
        for document in spread(documents, limit):
            tags: list[str] = []
            for sentence in document.sentences:
                sentence_tags = [misc.get("NER", "O") for misc in sentence.misc]
                tags.extend(repair_iob(sentence_tags, sentence.sent_id, notes))
            docs.append(treebank_doc(document, tags, one_hot(document.meta["topic"], topics), nlp))
        corpus.docs[split] = docs
    return corpus


# --- the user's own -----------------------------------------------------------------------------


def read_custom(paths: dict[str, Path | None], nlp: Language, *, limit: int = 0) -> Corpus:
    """Read the splits from `.spacy` or JSONL files. A missing dev or test is split off from train.

    paths: by split.
    """
    train = paths.get("train")
    if train is None:
        raise CorpusError("A custom corpus needs --train: a .spacy or .jsonl file")
    corpus = Corpus(docs={}, notes={split: Notes() for split in SPLITS})
    for split in SPLITS:
        path = paths.get(split)
        if path is not None:
            corpus.docs[split] = read_docs(path, nlp, corpus.notes[split])
    absent = [split for split in SPLITS if split not in corpus.docs]
    if absent:
        split_off(corpus, absent, train)
    for split in SPLITS:
        corpus.docs[split] = spread(corpus.docs[split], limit)
    complete_cats(corpus)
    corpus.unlabelled = [doc.text.splitlines() for doc in corpus.docs["train"]]
    return corpus


def split_off(corpus: Corpus, absent: Sequence[str], path: Path) -> None:
    """Move a tenth of the training documents, at least one, to each absent split."""
    docs = corpus.docs["train"]
    size = max(1, round(len(docs) * HELD_OUT))
    if len(docs) <= size * len(absent):
        raise CorpusError(
            f"{path}: {len(docs)} documents are too few to split off {' and '.join(absent)}; "
            f"give at least {len(absent) + 1}, or files of their own"
        )
    # Evenly spaced, because files are often sorted by source or label.
    chosen = spread(range(len(docs)), size * len(absent))
    for offset, split in enumerate(absent):
        corpus.docs[split] = [docs[index] for index in chosen[offset :: len(absent)]]
        note = f"every {len(docs) // size}th document of {path}"
        corpus.notes[split].add("documents taken from train, as no file was given", note, size)
    corpus.docs["train"] = [doc for index, doc in enumerate(docs) if index not in set(chosen)]


def complete_cats(corpus: Corpus) -> None:
    """Give every doc that has categories a value for every label of the training docs."""
    labels = sorted({label for doc in corpus.docs["train"] for label in doc.cats})
    for split in SPLITS:
        for doc in corpus.docs[split]:
            for label in sorted(set(doc.cats) - set(labels)):
                corpus.notes[split].add(
                    "categories that train has not", f"{label}: {doc.text[:40]}"
                )
            if doc.cats:
                doc.cats = {label: float(doc.cats.get(label, 0.0)) for label in labels}


# --- text ---------------------------------------------------------------------------------------


def read_text(path: Path) -> Iterator[list[str]]:
    """Read the documents of a text file (a blank line between them) or of a JSONL file ("text").

    path: file, or directory of such files, which are read in the order of their names.
    """
    if path.is_dir():
        files = sorted(file for kind in ("*.txt", "*.jsonl") for file in path.rglob(kind))
        if not files:
            raise CorpusError(f"{path}: no .txt or .jsonl file in this directory")
        for file in files:
            yield from read_text(file)
        return
    paragraphs: list[str] = []
    for number, line in read_lines(path):
        if path.suffix == ".jsonl":
            if line.strip():
                try:
                    text = json.loads(line)["text"]
                    yield [part for part in text.splitlines() if part.strip()]
                except (ValueError, KeyError, TypeError, AttributeError) as error:
                    raise CorpusError(
                        f"{path}:{number}: expected a JSON object with a 'text'"
                    ) from error
        elif line.strip():
            paragraphs.append(line.strip())
        elif paragraphs:
            yield paragraphs
            paragraphs = []
    if paragraphs:
        yield paragraphs


def write_text(path: Path, documents: Iterable[Sequence[str]]) -> dict[str, int]:
    """Write documents one by one, and return their counts."""
    counts = Counter({"docs": 0, "paragraphs": 0, "words": 0})
    with path.open("w", encoding="utf8", newline="\n") as file:
        for document in documents:
            paragraphs = [" ".join(paragraph.split()) for paragraph in document]
            paragraphs = [paragraph for paragraph in paragraphs if paragraph]
            if paragraphs:
                file.write("\n" * bool(counts["docs"]) + "\n".join(paragraphs) + "\n")
                counts["docs"] += 1
                counts["paragraphs"] += len(paragraphs)
                counts["words"] += sum(len(paragraph.split()) for paragraph in paragraphs)
    return dict(counts)


# --- counting and writing -----------------------------------------------------------------------


def spread(items: Sequence[T], limit: int) -> list[T]:
    """Choose at most `limit` items, evenly spaced because files are often sorted. 0 for all."""
    if not limit or limit >= len(items):
        return list(items)
    return [items[index * len(items) // limit] for index in range(limit)]


def layers(docs: Sequence[Doc]) -> dict[str, bool]:
    """Find the annotation layers of the docs, and whether each has exactly one category."""
    categorised = [doc.cats for doc in docs if doc.cats]
    return {
        "pos": any(doc.has_annotation("POS") for doc in docs),
        "tag": any(doc.has_annotation("TAG") for doc in docs),
        "ents": any(doc.has_annotation("ENT_IOB") for doc in docs)
        and any(doc.ents for doc in docs),
        "cats": bool(categorised),
        "cats_exclusive": bool(categorised)
        and all(len(cats) > 1 and sum(cats.values()) == 1.0 for cats in categorised),
    }


def count(docs: Sequence[Doc]) -> dict[str, Any]:
    """Count the annotation of a split. `sentences` is null if no sentence is marked."""
    entities = Counter(ent.label_ for doc in docs for ent in doc.ents)
    cats = Counter({label: 0 for doc in docs for label in doc.cats})
    cats.update(label for doc in docs for label, value in doc.cats.items() if value)
    marked = [doc for doc in docs if doc.has_annotation("SENT_START")]
    return {
        "docs": len(docs),
        "sentences": sum(1 for doc in marked for _ in doc.sents) if marked else None,
        "tokens": sum(len(doc) for doc in docs),
        "tokens_without_entity_annotation": sum(not t.ent_iob for doc in docs for t in doc),
        "entities": dict(sorted(entities.items())),
        "cats": dict(sorted(cats.items())),
        "layers": layers(docs),
    }


def write(
    corpus: Corpus, out_dir: Path, *, dataset: str, lang: str, text: Sequence[Path]
) -> dict[str, Any]:
    """Write a corpus to `out_dir` and return the contents of `corpus.json`."""
    out_dir.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        DocBin(attrs=ATTRS, docs=corpus.docs[split]).to_disk(out_dir / f"{split}.spacy")

    def documents() -> Iterator[Sequence[str]]:
        yield from corpus.unlabelled
        for path in text:
            yield from read_text(path)

    unlabelled = write_text(out_dir / "unlabelled.txt", documents())
    splits = {split: count(corpus.docs[split]) for split in SPLITS}
    summary = {
        "dataset": dataset,
        "lang": lang,
        # Layers that can be learned, and layers that can be scored in training.
        "layers": splits["train"]["layers"],
        "scored": splits["dev"]["layers"],
        "splits": splits,
        "unlabelled": unlabelled,
        "left_out": {split: corpus.notes[split].to_dict() for split in SPLITS},
    }
    with (out_dir / "corpus.json").open("w", encoding="utf8") as file:
        json.dump(summary, file, indent=2, ensure_ascii=False)
        file.write("\n")
    return summary


def check(corpus: Corpus) -> None:
    """Drop categories that never change. Raises CorpusError if there is nothing to learn."""
    train = corpus.docs["train"]
    labels = {label for doc in train for label in doc.cats}
    values = {(label, doc.cats[label]) for doc in train if doc.cats for label in labels}
    if len(labels) == 1 and len(values) == 1:
        (label,) = labels
        for split in SPLITS:
            docs = [doc for doc in corpus.docs[split] if doc.cats]
            corpus.notes[split].add_many(
                f"categories, as the only label '{label}' never changes",
                [d.text[:40] for d in docs],
            )
            for doc in docs:
                doc.cats = {}
    if not any(layers(train).values()):
        raise CorpusError(
            "The training documents have no annotation to learn from: no part of speech, no tag, "
            "no entity and no category with at least two outcomes"
        )


def report(summary: dict[str, Any]) -> None:
    """Print the counts, and the notes on what was left out."""
    splits = summary["splits"]
    rows: list[tuple[Any, ...]] = []
    for key in ("docs", "sentences", "tokens"):
        rows.append((key, *(_number(splits[split][key]) for split in SPLITS)))
    unknown = [splits[split]["tokens_without_entity_annotation"] for split in SPLITS]
    rows.append(("tokens without entity annotation", *map(_number, unknown)))
    for kind in ("entities", "cats"):
        labels = sorted({label for split in SPLITS for label in splits[split][kind]})
        totals = [sum(splits[split][kind].values()) for split in SPLITS]
        if kind == "entities" and labels:
            rows.append((kind, *map(_number, totals)))
        for label in labels:
            row = [splits[split][kind].get(label, 0) for split in SPLITS]
            rows.append((f"  {label}", *map(_number, row)))
    header = (summary["dataset"], *SPLITS)
    msg.table(rows, header=header, divider=True, aligns=("l", "r", "r", "r"))
    have = [name for name in ("pos", "tag", "ents", "cats") if summary["layers"][name]]
    msg.info(f"Layers: {', '.join(have)}")
    unlabelled = summary["unlabelled"]
    msg.info(f"Unlabelled: {unlabelled['docs']:,} documents, {unlabelled['words']:,} words")
    lost = [
        (reason, split, f"{note['count']:,}", note["examples"][0])
        for split in SPLITS
        for reason, note in summary["left_out"][split].items()
    ]
    if lost:
        header = ("Left out, repaired or moved", "split", "count", "for example")
        msg.table(lost, header=header, divider=True, max_col=70)
    else:
        msg.info("Nothing was left out")


def _number(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def make_corpus(
    dataset: Dataset,
    out_dir: Path,
    *,
    assets: Path = Path("assets"),
    paths: dict[str, Path | None] | None = None,
    text: Sequence[Path] = (),
    limit: int = 0,
    lang: str = "en",
    sample: Path = SAMPLE,
) -> dict[str, Any]:
    """Convert a dataset and return the contents of its `corpus.json`."""
    if limit < 0:
        raise CorpusError(f"limit = {limit}, expected a number of documents, or 0 for all")
    nlp = spacy.blank(lang)
    if dataset is Dataset.ewt:
        corpus = read_ewt(assets, nlp, limit=limit)
    elif dataset is Dataset.sample:
        corpus = read_sample(sample, nlp, limit=limit)
    else:
        corpus = read_custom(paths or {}, nlp, limit=limit)
    check(corpus)
    return write(corpus, out_dir, dataset=dataset.value, lang=lang, text=text)


def main(
    dataset: Annotated[Dataset, typer.Argument(help="Dataset to convert")],
    out_dir: Annotated[Path, typer.Argument(help="Directory for the corpus")],
    assets: Annotated[Path, typer.Option(help="ewt: directory of the downloads")] = Path("assets"),
    train: Annotated[str, typer.Option(help="custom: .spacy or .jsonl to train on")] = "",
    dev: Annotated[str, typer.Option(help="custom: to score in training")] = "",
    test: Annotated[str, typer.Option(help="custom: to score in the end")] = "",
    text: Annotated[
        list[str] | None, typer.Option(help="More unlabelled text: .txt, .jsonl or a directory")
    ] = None,
    limit: Annotated[
        int, typer.Option(help="Keep this many documents of each split, evenly spaced; 0: all")
    ] = 0,
    lang: Annotated[str, typer.Option(help="Language of the tokenizer")] = "en",
) -> None:
    """Turn a dataset into .spacy files, unlabelled text and a summary.

    An empty path counts as none, so that a project can pass on a variable that is not set.
    """
    with friendly_errors():
        splits = {"train": train, "dev": dev, "test": test}
        summary = make_corpus(
            dataset,
            out_dir,
            assets=assets,
            paths={split: Path(path) if path else None for split, path in splits.items()},
            text=[Path(path) for path in text or () if path],
            limit=limit,
            lang=lang,
        )
        report(summary)
        msg.good(f"Wrote the corpus to {out_dir}")


if __name__ == "__main__":
    typer.run(main)
