"""Convert treebanks and named entities of German, French, Swedish and Portuguese to .spacy files.

    python -m benchmarks.languages.corpora DATA OUT

DATA has directories `de_gsd` (UD German GSD, whose test split trains here, and whose dev split
tests), `mobie_de` (MobIE), `sequoia` (UD French Sequoia), `uner_sv` and `uner_pt` (Universal NER
Swedish Talbanken and Portuguese Bosque). The training splits of the latter two become text without
annotation.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Annotated

import spacy
import typer
from spacy.tokens import Doc, DocBin
from wasabi import msg

from benchmarks.common.documents import write_jsonl
from scripts._columns import read_columns
from scripts._conllu import read_conllu, read_iob2, treebank_doc
from scripts._notes import Notes
from spacy_distil.errors import friendly_errors

ATTRS = ("ORTH", "SPACY", "POS", "ENT_IOB", "ENT_TYPE", "SENT_START")
# Documents of the German training treebank that the pipelines are selected on.
N_DEV = 100


def read_treebank(path: Path, lang: str) -> list[Doc]:
    """Read words and UPOS of a treebank."""
    nlp = spacy.blank(lang)
    docs = []
    for document in read_conllu(path, Notes()):
        n_words = sum(len(sentence.words) for sentence in document.sentences)
        docs.append(treebank_doc(document, [""] * n_words, {}, nlp))
    return docs


def read_entities(path: Path, lang: str) -> list[Doc]:
    """Read words and entities in columns."""
    return [doc for doc, _ in read_columns(path, spacy.blank(lang))]


def read_universal_ner(path: Path, lang: str) -> list[Doc]:
    """Read words and entities of Universal NER."""
    vocab = spacy.blank(lang).vocab
    sentences = read_iob2(path).values()
    return [Doc(vocab, sentence.words, ents=list(sentence.tags)) for sentence in sentences]


def main(
    data: Annotated[Path, typer.Argument(help="Directory of the data sets")],
    output: Annotated[Path, typer.Argument(help="Directory for .spacy and .jsonl files")],
) -> None:
    """Convert the corpora of all four languages."""
    with friendly_errors():
        treebank = {s: read_treebank(data / f"de_gsd/de_gsd-ud-{s}.conllu", "de") for s in _GSD}
        entities = {
            split: read_entities(data / f"mobie_de/v1_20210811/{split}.conll2003", "de")
            for split in _SPLITS
        }
        files = {
            "de_train": entities["train"] + treebank["test"][:-N_DEV],
            "de_dev": entities["dev"] + treebank["test"][-N_DEV:],
            "de_ner_test": entities["test"],
            "de_pos_test": treebank["dev"],
        }
        for split in _SPLITS:
            files[f"fr_{split}"] = read_treebank(
                data / f"sequoia/fr_sequoia-ud-{split}.conllu", "fr"
            )
        for lang, name in (("sv", "talbanken"), ("pt", "bosque")):
            directory = data / f"uner_{lang}"
            path = directory / f"{lang}_{name}-ud-test.iob2"
            files[f"{lang}_ner_test"] = read_universal_ner(path, lang)
            docs = read_universal_ner(path.with_name(path.name.replace("test", "train")), lang)
            random.Random(0).shuffle(docs)
            write_jsonl(output / f"text_{lang}.jsonl", ({"text": doc.text} for doc in docs))
        output.mkdir(parents=True, exist_ok=True)
        for name, docs in files.items():
            DocBin(attrs=ATTRS, docs=docs).to_disk(output / f"{name}.spacy")
            msg.good(f"{name}.spacy: {len(docs):,} documents, {sum(map(len, docs)):,} words")


_SPLITS = ("train", "dev", "test")
_GSD = ("dev", "test")

if __name__ == "__main__":
    typer.run(main)
