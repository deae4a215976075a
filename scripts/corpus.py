"""Turn a dataset into the files that the project trains on.

    python -m scripts.corpus {sample,ewt,languages,custom} OUT_DIR [...]

writes `train.spacy`, `dev.spacy`, `test.spacy`, `unlabelled.txt` (one paragraph per line, a blank
line between documents) and `corpus.json`, with counts of the annotation and of what was left out.
If documents know their language (`doc.user_data["lang"]`), there is a `test-LANG.spacy` of each,
too.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, TextIO, TypeVar

import spacy
import typer
from spacy.language import Language
from spacy.tokens import Doc, DocBin
from wasabi import msg

from scripts._conllu import misc_tags, read_conllu, treebank_doc
from scripts._custom import LANG, SUFFIXES, Noted, read_docs
from scripts._languages import EWT, TREEBANKS, forget_xpos, read_treebank
from scripts._notes import Notes
from spacy_distil.distillation.pipeline.language import warn_of_foreign_text
from spacy_distil.errors import ConfigError, CorpusError, friendly_errors
from spacy_distil.report.verdicts import FEWEST_DOCS
from spacy_distil.text.languages import check_language
from spacy_distil.text.plain_text import TxtFiles, find_files, read_texts

SPLITS = ("train", "dev", "test")
GENRES = ("answers", "email", "newsgroup", "reviews", "weblog")
SAMPLE = Path(__file__).resolve().parents[1] / "corpus" / "sample"
# Annotation that is stored: the layers that the pipelines learn.
ATTRS = ("ORTH", "SPACY", "POS", "TAG", "ENT_IOB", "ENT_TYPE", "SENT_START")
HELD_OUT = 0.1
# At least so many different tags, and so many for each different word, are no tags. Lemmas have 0.7
# to 0.9 for each word, tags with morphology at most 0.55 (a few sentences) and mostly below 0.3.
MIN_TAGS, MAX_TAGS_PER_WORD = 20, 0.6

T = TypeVar("T")


class Dataset(str, Enum):
    sample = "sample"
    ewt = "ewt"
    languages = "languages"
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


def one_hot(label: str, labels: Iterable[str]) -> dict[str, float]:
    return {name: float(name == label) for name in labels}


def read_ewt(assets: Path, nlp: Language, *, limit: int = 0) -> Corpus:
    """Read UD English EWT with the entities of Universal NER. The category is the genre.

    assets: directory with `en_ewt-ud-{train,dev,test}.{conllu,iob2}`.
    """
    corpus = Corpus(docs={}, notes={})
    for split in SPLITS:
        notes = corpus.notes[split] = Notes()
        docs = []
        read = list(read_treebank(EWT, split, assets, notes))
        for document, tags in spread(read, limit):
            notes.merge(document.notes)
            genre = document.name.split("-")[0]
            if genre not in GENRES:
                raise CorpusError(
                    f"{assets / EWT.files(split)[0]}: document '{document.name}' has genre "
                    f"'{genre}', expected one of {', '.join(GENRES)}"
                )
            docs.append(treebank_doc(document, tags, one_hot(genre, GENRES), nlp))
            if split == "train":
                corpus.unlabelled.append(document.paragraphs())
        corpus.docs[split] = docs
    return corpus


def read_languages(assets: Path, nlp: Language, *, limit: int = 0) -> Corpus:
    """Read the treebanks of all languages as one corpus, see `_languages`.

    assets: directory of their files.
    limit: most documents of a split, an even share of them for each language.
    """
    corpus = Corpus(docs={split: [] for split in SPLITS}, notes={})
    share = max(1, limit // len(TREEBANKS)) if limit else 0
    for split in SPLITS:
        notes = corpus.notes[split] = Notes()
        for treebank in TREEBANKS:
            read = list(read_treebank(treebank, split, assets, notes))
            for document, tags in spread(read, share):
                notes.merge(document.notes)
                forget_xpos(document)
                doc = treebank_doc(document, tags, {}, nlp)
                doc.user_data[LANG] = treebank.lang
                corpus.docs[split].append(doc)
                if split == "train":
                    corpus.unlabelled.append(document.paragraphs())
    return corpus


def read_sample(directory: Path, nlp: Language, *, limit: int = 0) -> Corpus:
    """Read the corpus of the project: topics are in comments, entities in the MISC column."""
    unlabelled = list(read_text(directory / "unlabelled.txt"))
    corpus = Corpus(docs={}, notes={}, unlabelled=unlabelled)
    topics: list[str] = []
    for split in SPLITS:
        notes = corpus.notes[split] = Notes()
        path = directory / f"{split}.conllu"
        documents = read_conllu(path, notes)
        if not topics:
            topics = sorted({document.meta["topic"] for document in documents})
        docs = []
        tagged = zip(documents, misc_tags(documents, path), strict=True)
        for document, tags in spread(list(tagged), limit):
            notes.merge(document.notes)
            docs.append(treebank_doc(document, tags, one_hot(document.meta["topic"], topics), nlp))
        corpus.docs[split] = docs
    return corpus


# --- the user's own -----------------------------------------------------------------------------


def read_custom(paths: dict[str, Path | None], nlp: Language, *, limit: int = 0) -> Corpus:
    """Read the splits from annotated files. A missing dev or test is split off from train.

    paths: by split.
    """
    train = paths.get("train")
    if train is None:
        raise CorpusError(f"A custom corpus needs --train: a file ({', '.join(SUFFIXES)})")
    corpus = Corpus(docs={}, notes={split: Notes() for split in SPLITS})
    read = {
        split: read_docs(path, nlp, corpus.notes[split])
        for split, path in paths.items()
        if path is not None
    }
    absent = [split for split in SPLITS if split not in read]
    read.update(split_off(read, absent, train))
    for split in SPLITS:
        chosen = spread(read[split], limit)
        for _, notes in chosen:
            corpus.notes[split].merge(notes)
        corpus.docs[split] = [doc for doc, _ in chosen]
        if split in absent:
            reason = "documents taken from train, as no file was given"
            corpus.notes[split].add(reason, str(train), len(chosen))
    complete_cats(corpus)
    corpus.unlabelled = [doc.text.splitlines() for doc in corpus.docs["train"]]
    return corpus


def split_off(
    read: dict[str, list[Noted]], absent: Sequence[str], path: Path
) -> dict[str, list[Noted]]:
    """Take a tenth of the training documents, at least one, for each absent split.

    RETURNS: the absent splits and the rest of train.
    """
    docs = read["train"]
    size = max(1, round(len(docs) * HELD_OUT))
    if absent and len(docs) <= size * len(absent):
        raise CorpusError(
            f"{path}: {len(docs)} documents are too few to split off {' and '.join(absent)}; "
            f"give at least {len(absent) + 1}, or files of their own"
        )
    # Evenly spaced, because files are often sorted by source or label.
    chosen = spread(range(len(docs)), size * len(absent)) if absent else []
    splits = {
        split: [docs[index] for index in chosen[offset :: len(absent)]]
        for offset, split in enumerate(absent)
    }
    left = set(range(len(docs))) - set(chosen)
    return {**splits, "train": [docs[index] for index in sorted(left)]}


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


def read_text(path: Path, txt: TxtFiles | None = None) -> Iterator[list[str]]:
    """Read the documents of a text file, or of the files of a directory, as paragraphs.

    path, txt: see `spacy_distil.text.plain_text`.
    """
    for file in find_files([path], setting="--text"):
        for text in read_texts(file, txt):
            yield text.splitlines()


@dataclass
class _TextCounts:
    """Numbers of what has been written; words are what spaces divide."""

    docs: int = 0
    paragraphs: int = 0
    words: int = 0


def write_text(
    file: TextIO, documents: Iterable[Sequence[str]], total: _TextCounts, *others: _TextCounts
) -> None:
    """Write documents one by one, and count them.

    total: counts all that the file holds.
    """
    for document in documents:
        paragraphs = [" ".join(paragraph.split()) for paragraph in document]
        paragraphs = [paragraph for paragraph in paragraphs if paragraph]
        if paragraphs:
            file.write("\n" * bool(total.docs) + "\n".join(paragraphs) + "\n")
            for counts in (total, *others):
                counts.docs += 1
                counts.paragraphs += len(paragraphs)
                counts.words += sum(len(paragraph.split()) for paragraph in paragraphs)


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
    """Count the annotation of a split. `sentences` is null if no sentence is marked.

    A document of one token counts as a sentence where others are marked.
    """
    entities = Counter(ent.label_ for doc in docs for ent in doc.ents)
    cats = Counter({label: 0 for doc in docs for label in doc.cats})
    cats.update(label for doc in docs for label, value in doc.cats.items() if value)
    # spaCy calls every document of one token annotated.
    marked = [doc for doc in docs if doc.has_annotation("SENT_START")]
    is_marked = any(len(doc) > 1 for doc in marked)
    return {
        "docs": len(docs),
        "sentences": sum(1 for doc in marked for _ in doc.sents) if is_marked else None,
        "docs_without_sentences": len(docs) - len(marked) if is_marked else len(docs),
        "tokens": sum(len(doc) for doc in docs),
        "tokens_without_entity_annotation": sum(not t.ent_iob for doc in docs for t in doc),
        "entities": dict(sorted(entities.items())),
        "cats": dict(sorted(cats.items())),
        "languages": {lang: len(own) for lang, own in by_language(docs).items()},
        "layers": layers(docs),
    }


def by_language(docs: Sequence[Doc]) -> dict[str, list[Doc]]:
    """Sort the docs that know their language, see `LANG`."""
    found: dict[str, list[Doc]] = {}
    for doc in docs:
        if LANG in doc.user_data:
            found.setdefault(doc.user_data[LANG], []).append(doc)
    return dict(sorted(found.items()))


def write(
    corpus: Corpus, out_dir: Path, *, dataset: str, lang: str, text: Sequence[Path]
) -> dict[str, Any]:
    """Write a corpus to `out_dir` and return the contents of `corpus.json`."""
    out_dir.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        write_docs(corpus.docs[split], out_dir / f"{split}.spacy")
    for old in out_dir.glob("test-*.spacy"):
        old.unlink()
    for code, docs in by_language(corpus.docs["test"]).items():
        write_docs(docs, out_dir / f"test-{code}.spacy")

    unlabelled, more = _TextCounts(), _TextCounts()
    txt = TxtFiles()
    with (out_dir / "unlabelled.txt").open("w", encoding="utf8", newline="\n") as file:
        write_text(file, corpus.unlabelled, unlabelled)
        for path in text:
            write_text(file, read_text(path, txt), unlabelled, more)
    txt.tell(msg.info)
    splits = {split: count(corpus.docs[split]) for split in SPLITS}
    summary = {
        "dataset": dataset,
        "lang": lang,
        # Layers that can be learned, and layers that can be scored in training.
        "layers": splits["train"]["layers"],
        "scored": splits["dev"]["layers"],
        "splits": splits,
        "unlabelled": asdict(unlabelled),
        "text": asdict(more),
        "left_out": {split: corpus.notes[split].to_dict() for split in SPLITS},
    }
    with (out_dir / "corpus.json").open("w", encoding="utf8") as file:
        json.dump(summary, file, indent=2, ensure_ascii=False)
        file.write("\n")
    return summary


def write_docs(docs: Sequence[Doc], path: Path) -> None:
    """Write the annotation that is stored, and the docs' languages."""
    know_language = bool(by_language(docs))
    DocBin(attrs=ATTRS, docs=docs, store_user_data=know_language).to_disk(path)


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


def warn(corpus: Corpus, text: Sequence[Path], lang: str) -> None:
    """Warn of documents in another language, of tags that may be lemmas, and of too few to score.

    text: more files without annotation.
    """
    warn_of_foreign_text((doc.text for doc in corpus.docs["train"]), "The training corpus", lang)
    paragraphs = (paragraph for path in text for doc in read_text(path) for paragraph in doc)
    warn_of_foreign_text(paragraphs, "The text without annotation", lang)
    tagged = [token for doc in corpus.docs["train"] for token in doc if token.tag_]
    n_tags, n_words = len({token.tag for token in tagged}), len({token.orth for token in tagged})
    if n_tags >= MIN_TAGS and n_tags >= MAX_TAGS_PER_WORD * n_words:
        msg.warn(
            f"{n_words:,} different words have {n_tags:,} different tags (XPOS): are they lemmas? "
            "A tagger would learn them. In lines of three or more columns, the second is the tag: "
            "remove it, or write _ there"
        )
    few = [
        f"{len(corpus.docs[split])} in {split}"
        for split in SPLITS[1:]
        if len(corpus.docs[split]) < FEWEST_DOCS
    ]
    if few:
        msg.warn(
            f"Documents to score: {' and '.join(few)}. With fewer than {FEWEST_DOCS}, scores "
            "tell little. Give more documents, or files of their own as --dev and --test"
        )


def report(summary: dict[str, Any]) -> None:
    """Print the counts, and the notes on what was left out."""
    splits = summary["splits"]
    rows: list[tuple[Any, ...]] = []
    for key in ("docs", "sentences", "tokens"):
        rows.append((key, *(_number(splits[split][key]) for split in SPLITS)))
        if key == "docs":
            for lang in sorted({lang for split in SPLITS for lang in splits[split]["languages"]}):
                of_lang = [splits[split]["languages"].get(lang, 0) for split in SPLITS]
                rows.append((f"  {lang}", *map(_number, of_lang)))
    if any(splits[split]["sentences"] for split in SPLITS):
        unmarked = [splits[split]["docs_without_sentences"] for split in SPLITS]
        if any(unmarked):
            rows.insert(
                len(rows) - 1, ("  docs without sentence boundaries", *map(_number, unmarked))
            )
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
    train = splits["train"]
    annotated = train["tokens"] - train["tokens_without_entity_annotation"]
    if annotated and not train["entities"]:
        msg.warn(
            f"Training documents with {annotated:,} tokens say that they have no entities, and no "
            "other one has any: no pipe learns entities. Was the annotation read from the right "
            "place?"
        )
    if lost:
        header = ("Left out, repaired or moved", "split", "count", "for example")
        widest = max(70, *(len(reason) for reason, *_ in lost))
        msg.table(lost, header=header, divider=True, max_col=widest)
    else:
        msg.info("Nothing was left out")


def _number(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def check_dataset(dataset: Dataset, lang: str) -> None:
    """Check the language of a pipeline.

    Raises ConfigError if spaCy has no such language, or the dataset is in several languages and
        `lang` is one of them.
    """
    check_language(lang)
    if dataset is Dataset.languages and lang != "xx":
        codes = ", ".join(treebank.lang for treebank in TREEBANKS)
        raise ConfigError(
            f"lang = {lang!r}, but dataset = '{dataset.value}' is in several languages ({codes}). "
            "Expected 'xx', spaCy's code for many languages: --vars.lang xx"
        )


def make_tokenizer(lang: str) -> Language:
    """Make a blank pipeline. Raises ConfigError if a package of the language is missing."""
    try:
        return spacy.blank(lang)
    except ImportError as error:  # it names the packages
        raise ConfigError(f"lang = {lang!r}: {error}") from error


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
    check_dataset(dataset, lang)
    nlp = make_tokenizer(lang)
    if dataset is Dataset.ewt:
        corpus = read_ewt(assets, nlp, limit=limit)
    elif dataset is Dataset.languages:
        corpus = read_languages(assets, nlp, limit=limit)
    elif dataset is Dataset.sample:
        corpus = read_sample(sample, nlp, limit=limit)
    else:
        corpus = read_custom(paths or {}, nlp, limit=limit)
    check(corpus)
    warn(corpus, text, lang)
    return write(corpus, out_dir, dataset=dataset.value, lang=lang, text=text)


def main(
    dataset: Annotated[Dataset, typer.Argument(help="Dataset to convert")],
    out_dir: Annotated[Path, typer.Argument(help="Directory for the corpus")],
    assets: Annotated[Path, typer.Option(help="Directory of the downloads")] = Path("assets"),
    train: Annotated[
        str, typer.Option(help=f"custom: file to train on ({', '.join(SUFFIXES)})")
    ] = "",
    dev: Annotated[str, typer.Option(help="custom: to score in training")] = "",
    test: Annotated[str, typer.Option(help="custom: to score in the end")] = "",
    text: Annotated[
        list[str] | None,
        typer.Option(help="More unlabelled text: .txt, .jsonl, .spacy or a directory"),
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
