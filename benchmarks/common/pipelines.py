"""Pipelines to measure, made from trained ones in a work directory.

Each pipeline is made once, when a benchmark first asks for it. All have the same pipes: an encoder,
`tagger`, `ner` (or `distil_ner`) and `textcat`. Other pipes of the trained pipelines are dropped.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import spacy
from spacy.language import Language
from spacy.training import Example
from thinc.api import Adam
from wasabi import msg

from benchmarks.common.spacy_transformers_twin import ENCODER_FACTORY, make_twin, write_encoder
from spacy_distil.engines.files import CONFIG, TOKENIZER
from spacy_distil.text.documents import read_examples

PIPES = {"tagger", "ner", "distil_ner", "textcat"}
ENCODER_FACTORIES = {ENCODER_FACTORY, "tok2vec"}
# How `distil_ner` is trained if no trained one is given.
NER_DOCS, NER_PASSES, NER_BATCH = 100, 5, 10
# Number of documents on which an int8 pipeline is checked.
CHECKED_DOCS = 20
# Number of documents on which a twin must agree with its original, and their length in words. They
# are short enough for one window of either.
TWIN_DOCS, TWIN_WORDS = 20, 90


@dataclass(frozen=True)
class Sources:
    """Sources of the pipelines. A trained pipeline may be `None` if no row needs it.

    docs: annotated documents, a .spacy file.
    teacher: pipeline with `ner`, on an encoder of 6 layers and width 384.
    student: pipeline with `distil_ner`, on a student of 3 layers.
    cnn: spaCy's CNN pipeline.
    teacher_distil_ner: the teacher with `distil_ner`. If it is missing, `distil_ner` is trained for
        a few passes on `docs`. Its speed is then realistic, its scores are not.
    quantize: further arguments of `spacy distil quantize`.
    """

    docs: Path
    teacher: Path | None = None
    student: Path | None = None
    cnn: Path | None = None
    teacher_distil_ner: Path | None = None
    quantize: Sequence[str] = ()


class Pipelines:
    """Paths of pipelines by name. Each is made in the work directory on the first call."""

    def __init__(self, sources: Sources, work: Path, *, reuse: bool) -> None:
        """reuse: use the pipelines that an earlier run has left in `work`."""
        self.sources = sources
        self.work = work
        self.reuse = reuse
        self._made: set[str] = set()
        self._makers: dict[str, Callable[[Path], None]] = {
            "encoder": self._encoder,
            "encoder-int8": lambda path: self._quantize("encoder", path),
            "encoder-theirs": lambda path: self._twin("encoder", path),
            "heads": self._heads,
            "heads-int8": lambda path: self._quantize("heads", path),
            "heads-theirs": lambda path: self._twin("heads", path),
            "distil-ner": self._distil_ner,
            "distil-ner-int8": lambda path: self._quantize("distil-ner", path),
            "student": self._student,
            "student-int8": lambda path: self._quantize("student", path),
            "cnn": lambda path: select(self._given("cnn"), PIPES).to_disk(path),
            "bert-base": self._bert_base,
            "bert-base-int8": lambda path: self._quantize("bert-base", path),
            "bert-base-theirs": lambda path: self._twin("bert-base", path),
        }

    def path(self, name: str) -> Path:
        """Make the pipeline of a name if it is missing. RETURNS: its directory."""
        path = self.work / name
        if name in self._made:
            return path
        if not (self.reuse and (path / "meta.json").is_file()):
            msg.info(f"Making {name}")
            self.work.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(path, ignore_errors=True)
            self._makers[name](path)
        self._made.add(name)
        return path

    def _given(self, source: str) -> Path:
        path: Path | None = getattr(self.sources, source)
        if path is None:
            raise ValueError(
                f"Give --{source.replace('_', '-')}, or leave out the rows that need it."
            )
        return path

    def _examples(self, nlp: Language, limit: int) -> list[Example]:
        return read_examples(nlp, self.sources.docs, limit=limit)

    # On spacy-distil

    def _encoder(self, path: Path) -> None:
        select(self._given("teacher"), set()).to_disk(path)

    def _heads(self, path: Path) -> None:
        select(self._given("teacher"), PIPES).to_disk(path)

    def _distil_ner(self, path: Path) -> None:
        given = self.sources.teacher_distil_ner or self._given("teacher")
        self._with_distil_ner(given).to_disk(path)

    def _student(self, path: Path) -> None:
        self._with_distil_ner(self._given("student")).to_disk(path)

    def _with_distil_ner(self, given: Path) -> Language:
        nlp = select(given, PIPES)
        factories = {nlp.get_pipe_meta(name).factory: name for name in nlp.pipe_names}
        if "distil_ner" in factories:
            return nlp
        msg.warn(
            f"{given} has no distil_ner. Training one for a few passes: its speed is realistic, "
            "its scores are not"
        )
        name = factories["ner"]
        listener = {"@architectures": "spacy-distil.Listener.v1"}
        model = {"@architectures": "spacy.Tagger.v2", "tok2vec": listener}
        nlp.replace_pipe(name, "distil_ner", config={"model": model})
        examples = self._examples(nlp, NER_DOCS)
        encoder = next(
            n for n, _ in nlp.pipeline if nlp.get_pipe_meta(n).factory == ENCODER_FACTORY
        )
        with nlp.select_pipes(enable=[encoder, name]):
            ner = nlp.get_pipe(name)
            ner.initialize(lambda: examples, nlp=nlp)  # type: ignore[attr-defined]
            optimizer = Adam(0.001)
            for _ in range(NER_PASSES):
                for batch in spacy.util.minibatch(examples, NER_BATCH):
                    nlp.update(batch, sgd=optimizer, exclude=[encoder], annotates=[encoder])
        return nlp

    def _bert_base(self, path: Path) -> None:
        """Make a BERT-base of random weights, with the teacher's tokenizer and settings."""
        from transformers import BertConfig, BertModel

        teacher = spacy.load(self._given("teacher"))
        name = next(
            n for n in teacher.pipe_names if teacher.get_pipe_meta(n).factory == ENCODER_FACTORY
        )
        files = self._given("teacher") / name
        vocab_size = json.loads((files / CONFIG).read_text(encoding="utf8"))["vocab_size"]
        encoder = path.with_name(f"{path.name}-encoder")
        shutil.rmtree(encoder, ignore_errors=True)
        BertModel(BertConfig(vocab_size=vocab_size)).save_pretrained(encoder)
        shutil.copy(files / TOKENIZER, encoder)
        settings = {**teacher.get_pipe_config(name)["model"], "name": str(encoder)}
        nlp = spacy.blank(teacher.lang or "xx")
        nlp.add_pipe(ENCODER_FACTORY, name=name, config={"model": settings})
        nlp.initialize()
        nlp.to_disk(path)

    def _quantize(self, name: str, path: Path) -> None:
        command = [sys.executable, "-m", "spacy", "distil", "quantize"]
        command += [str(self.path(name)), str(path), "--precision", "int8"]
        command += ["--corpus", str(self.sources.docs), "--limit", str(CHECKED_DOCS)]
        subprocess.run([*command, *self.sources.quantize], check=True)

    # On spacy-transformers

    def _twin(self, name: str, path: Path) -> None:
        ours = spacy.load(self.path(name))
        encoder = next(
            n for n in ours.pipe_names if ours.get_pipe_meta(n).factory == ENCODER_FACTORY
        )
        files = path.with_name(f"{path.name}-encoder")
        shutil.rmtree(files, ignore_errors=True)
        write_encoder(self.path(name) / encoder, files)
        twin = make_twin(ours, files, self._examples(ours, TWIN_DOCS))
        self._check_twin(ours, twin)
        twin.to_disk(path)

    def _check_twin(self, ours: Language, twin: Language) -> None:
        """Raise ValueError if the two predict differently on short texts."""
        docs = [example.predicted[:TWIN_WORDS].text for example in self._examples(ours, TWIN_DOCS)]
        for mine, theirs in zip(ours.pipe(docs), twin.pipe(docs), strict=True):
            for predicted in (
                lambda doc: [token.tag_ for token in doc],
                lambda doc: [(ent.start, ent.end, ent.label_) for ent in doc.ents],
                lambda doc: max(doc.cats, key=doc.cats.get, default=None),
            ):
                if predicted(mine) != predicted(theirs):
                    raise ValueError(
                        f"For {mine.text!r} the twin predicts {predicted(theirs)}, the original "
                        f"{predicted(mine)}."
                    )


def select(pipeline: Path, factories: set[str]) -> Language:
    """Load a trained pipeline with its encoder and the pipes of these factories only."""
    config = spacy.util.load_config(pipeline / "config.cfg")
    keep = ENCODER_FACTORIES | factories
    pipes = {name: config["components"][name]["factory"] for name in config["nlp"]["pipeline"]}
    return spacy.load(pipeline, exclude=[n for n, factory in pipes.items() if factory not in keep])
