"""Damage a file of an encoder, a checkpoint, a cache or a run, and load what it belongs to."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import spacy
import torch
from confection import Config
from thinc.api import NumpyOps

from spacy_distil.component.shim import EncoderShim
from spacy_distil.distillation.encoder.checkpoint import Checkpoints as EncoderCheckpoints
from spacy_distil.distillation.encoder.config import CorpusSettings
from spacy_distil.distillation.encoder.corpus import load_corpus, plan_corpus
from spacy_distil.distillation.encoder.progress import RunLog
from spacy_distil.distillation.pipeline.cache import open_cache
from spacy_distil.distillation.pipeline.checkpoint import Checkpoints as PipelineCheckpoints
from spacy_distil.distillation.pipeline.heads.base import Field
from spacy_distil.engines.files import write_files
from spacy_distil.engines.pretrained import load_encoder, load_tokenizer, save_encoder
from spacy_distil.errors import DistilError
from spacy_distil.export.encoders import SourceEncoder
from spacy_distil.export.graph import Precision
from spacy_distil.runs.digests import SUMS
from spacy_distil.runs.directory import RunDirectory
from spacy_distil.students.teachers import load_teacher
from tests.campaigns.outcome import Deadline, Outcome
from tests.teachers import WORDS, write_teacher
from tests.util import LISTENER, SENTENCES, adam, encoder_of, make_examples, make_nlp, write_encoder

PROMISE = (
    "A damaged file of an encoder (torch or int8), a checkpoint or a cache is refused by an error "
    "of ours, or changes nothing. Without digests, or in the files of a run, it ends in no other "
    "error."
)
SHORT = 120

OPS = NumpyOps()


@dataclass(frozen=True)
class Artefact:
    """Something that we write and read.

    directory: with its files.
    other: with the files of another one of the same kind.
    load: reads a copy of the directory, and returns a digest of what it got. For an encoder, that
        is what it predicts.
    is_checked: whether it has digests. If not, damage may change what is loaded.
    """

    directory: Path
    other: Path
    load: Callable[[Path], str]
    is_checked: bool = True

    def files(self) -> list[Path]:
        """The files, relative to the directory."""
        return sorted(
            path.relative_to(self.directory)
            for path in self.directory.rglob("*")
            if path.is_file() and path.stat().st_size
        )


def run(n: int, seed: int, deadline: Deadline) -> Outcome:
    """Each case damages one file of a copy in one way, and loads the copy."""
    outcome, results = Outcome(), Counter[str]()
    with TemporaryDirectory() as scratch, quiet():
        root = Path(scratch)
        artefacts = make_artefacts(root)
        originals = {name: artefact.load(root / name) for name, artefact in artefacts.items()}
        for i in range(n):
            if deadline.passed():
                break
            rng = random.Random(f"{seed} {i}")
            name = rng.choice([*artefacts])
            artefact = artefacts[name]
            copy = Path(shutil.copytree(artefact.directory, root / "copy"))
            file = rng.choice(artefact.files())
            damage = rng.choice([*DAMAGES])
            path = copy / file
            DAMAGES[damage](path, artefact.other / file, rng)
            result = try_to_load(artefact, copy, originals[name])
            shutil.rmtree(copy)
            results[result] += 1
            outcome.cases += 1
            if result not in ("refused", "unchanged") and (artefact.is_checked or ":" in result):
                case = f"seed {seed} case {i}: {name}, {file}, {damage}"
                outcome.failures.append(f"{case}: {result}")
    outcome.figures = {
        "refused by name": f"{results['refused']:,}",
        "without effect": f"{results['unchanged']:,}",
        "other, of files without digests": f"{results['loaded with other content']:,}",
    }
    return outcome


def try_to_load(artefact: Artefact, copy: Path, original: str) -> str:
    """Say what happens."""
    try:
        found = artefact.load(copy)
    except DistilError:
        return "refused"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return f"{type(error).__name__}: {error}"
    return "unchanged" if found == original else "loaded with other content"


# Damage: of a file, with the same file of another artefact at hand


def truncate(path: Path, other: Path, rng: random.Random) -> None:
    os.truncate(path, rng.randrange(path.stat().st_size))


def flip(path: Path, other: Path, rng: random.Random) -> None:
    """Flip a few bits."""
    data = bytearray(path.read_bytes())
    for _ in range(rng.choice([1, 1, 1, 2, 8])):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def swap(path: Path, other: Path, rng: random.Random) -> None:
    """Put the file of another one in its place, or another file of its own."""
    mine = [file for file in path.parent.iterdir() if file.is_file() and file != path]
    source = other if other.is_file() and rng.random() < 0.5 else rng.choice([*mine, other])
    if source.is_file():
        path.write_bytes(source.read_bytes())


def empty(path: Path, other: Path, rng: random.Random) -> None:
    path.write_bytes(b"")


def zero(path: Path, other: Path, rng: random.Random) -> None:
    """Write zeros over a part, as a crash of the system may."""
    data = bytearray(path.read_bytes())
    start = rng.randrange(len(data))
    end = min(len(data), start + rng.choice([16, 512, 4096]))
    data[start:end] = bytes(end - start)
    path.write_bytes(data)


def append(path: Path, other: Path, rng: random.Random) -> None:
    path.write_bytes(path.read_bytes() + rng.randbytes(rng.choice([1, 32, 5000])))


def retype(path: Path, other: Path, rng: random.Random) -> None:
    """Give it content of another type."""
    contents = [b"[]", b"null", b"{}", b"3", b'"text"', b"\xff\xfe", b"\x80", rng.randbytes(500)]
    path.write_bytes(rng.choice(contents))


def change_value(path: Path, other: Path, rng: random.Random) -> None:
    """Change a value in JSON to one of another type or size. Other files are cut."""
    try:
        content = json.loads(path.read_bytes())
    except ValueError:
        content = None
    if not isinstance(content, dict) or not content:
        truncate(path, other, rng)
        return
    key = rng.choice([*content])
    value = rng.choice([None, -1, 0, 1.5, "text", [], {}, True, 10**12, float("nan"), "remove"])
    changed = {**content, key: value}
    if value == "remove":
        del changed[key]
    path.write_text(json.dumps(changed))


def remove(path: Path, other: Path, rng: random.Random) -> None:
    path.unlink()


def make_directory(path: Path, other: Path, rng: random.Random) -> None:
    path.unlink()
    path.mkdir()


DAMAGES = {
    "truncated": truncate,
    "flipped": flip,
    "swapped": swap,
    "emptied": empty,
    "zeroed": zero,
    "appended": append,
    "of another type": retype,
    "with another value": change_value,
    "removed": remove,
    "a directory": make_directory,
}


# Artefacts


def make_artefacts(root: Path) -> dict[str, Artefact]:
    """Make two of each kind, in root/NAME and root/NAME-other."""
    loads: dict[str, Callable[[Path], str]] = {}
    blank = spacy.blank("en")
    docs = [blank.make_doc(text) for text in SENTENCES]

    def predict(settings: Any) -> Callable[[Path], str]:
        return lambda path: digest(EncoderShim(settings).from_disk(path).predict_docs(docs, OPS))

    nlps = {}
    for suffix, number in (("", 0), ("-other", 1)):
        source = write_encoder(root / f"source{suffix}", "bert", width=64, seed=number)
        nlps[suffix] = nlp = make_nlp(source, ["tagger"])
        ner = nlp.add_pipe("distil_ner", config={"model": {"tok2vec": LISTENER}})
        ner.initialize(lambda nlp=nlp: make_examples(nlp), nlp=nlp)
        ner.to_disk(root / f"distil_ner{suffix}", exclude=["vocab"])
        loads["distil_ner"] = ner_reader(ner)
        shim = encoder_of(nlp)
        shim.to_disk(root / f"torch{suffix}")
        int8 = SourceEncoder(shim).to_files(Precision(frozenset(range(3)), embeddings=True))
        write_files(root / f"int8{suffix}", int8)
        loads["torch"] = predict(shim.settings)
        loads["int8"] = predict(replace(shim.settings, engine="onnx", threads=1))

        write_teacher(root / f"plain{suffix}", "bert", head=True, layers=2 + number)
        teacher = load_teacher(str(root / f"plain{suffix}"))
        save_encoder(teacher.model, teacher.tokenizer, root / f"folder{suffix}")
        make_encoder_checkpoint(root / f"encoder checkpoint{suffix}", number)
        make_pipeline_checkpoint(root / f"pipeline checkpoint{suffix}", nlp)
        make_run(root / f"run{suffix}", number)
        open_teacher_cache(root / f"teacher cache{suffix}", number)
    text = root / "text.txt"
    text.write_text("\n\n".join(" ".join(WORDS[i:] + WORDS[:i]) for i in range(40)))
    loads["corpus cache"] = read_corpus = corpus_reader(root / "folder", text)
    read_corpus(root / "corpus cache")
    other_text = root / "other.txt"
    other_text.write_text("\n\n".join(" ".join(WORDS[::-1]) for _ in range(40)))
    corpus_reader(root / "folder", other_text)(root / "corpus cache-other")

    loads |= {
        "folder": load_folder,
        "encoder checkpoint": lambda path: digest(
            EncoderCheckpoints(path, keep=1).load(3, torch.device("cpu"))
        ),
        "pipeline checkpoint": pipeline_checkpoint_reader(nlps[""]),
        "teacher cache": lambda path: digest(open_teacher_cache(path, 0)),
        "run": read_run,
    }
    artefacts = {
        name: Artefact(root / name, root / f"{name}-other", load, is_checked=name != "run")
        for name, load in loads.items()
    }
    # On purpose, as someone who edits them does.
    for name in ("torch", "folder"):
        plain = Path(shutil.copytree(root / name, root / f"{name} without digests"))
        (plain / SUMS).unlink()
        artefacts[plain.name] = Artefact(plain, root / f"{name}-other", loads[name], False)
    return artefacts


def ner_reader(ner: Any) -> Callable[[Path], str]:
    return lambda path: digest(ner.from_disk(path, exclude=["vocab"]).to_bytes(exclude=["vocab"]))


def load_folder(path: Path) -> str:
    """As a teacher, and as an encoder by name."""
    teacher = load_teacher(str(path))
    weights = {k: v.numpy() for k, v in load_encoder(str(path)).state_dict().items()}
    pieces = load_tokenizer(str(path))([" ".join(WORDS)])[0].ids
    return digest([teacher.fingerprint, teacher.tokenizer(WORDS[0])["input_ids"], weights, pieces])


def make_encoder_checkpoint(path: Path, number: int) -> None:
    torch.manual_seed(number)
    state = {"distiller": {"weight": torch.randn(3000)}, "step": number, "rates": [(0.9, 0.98)]}
    checkpoints = EncoderCheckpoints(path, keep=1)
    checkpoints.save(3 + number, state)
    if number:  # another step
        checkpoints._path(4).rename(checkpoints._path(3))


def make_pipeline_checkpoint(path: Path, nlp: Any) -> None:
    optimizer = adam()
    nlp.update(make_examples(nlp), sgd=optimizer)
    results = {"results": [[0.5, 3]]}
    PipelineCheckpoints(path).save(3, nlp, optimizer, None, results, nlp.to_disk)


def pipeline_checkpoint_reader(nlp: Any) -> Callable[[Path], str]:
    def read(path: Path) -> str:
        checkpoints, optimizer = PipelineCheckpoints(path), adam()
        step, state = checkpoints.load(path / "step-00000003", nlp, optimizer, None)
        return digest([step, state, nlp.to_bytes(), [*optimizer.mom1.values()]])

    return read


def make_run(path: Path, number: int) -> None:
    directory = run_directory(path)
    results: dict[str, Any] = {"inputs": {"the teacher": f"t{number}"}}
    directory.begin(Config({"training": {"seed": number, "steps": 9}}), results, None)
    results["finished"] = True
    directory.write_results({**results, "steps": 9, "scores": {"total": 0.5}, "device": "cpu"})
    log = RunLog(path / "log.jsonl")
    for step in range(1, 5):
        log.write(step, "train" if step % 2 else "held_out", {"total": step / 7})


def run_directory(path: Path) -> RunDirectory:
    finished = frozenset({"steps", "scores", "device"})
    none: frozenset[str] = frozenset()
    return RunDirectory(path, kind="encoder", own=none, kept=none, free=none, finished=finished)


def read_run(path: Path) -> str:
    settings = Config({"training": {"seed": 0, "steps": 9}})
    earlier = run_directory(path).find_earlier(
        settings, {"the teacher": "t0"}, resume=True, force=False
    )
    return digest([earlier, sorted(RunLog(path / "log.jsonl").forget_after(3))])


def corpus_reader(teacher: Path, text: Path) -> Callable[[Path], str]:
    loaded = load_teacher(str(teacher))
    settings = CorpusSettings(train=[str(text)], block_size=16, dev_fraction=0.0)
    plans = plan_corpus(settings, loaded)

    def read(path: Path) -> str:
        corpus = load_corpus(plans, settings, loaded, cache=path)
        return digest(corpus.train[range(len(corpus.train))])

    return read


def open_teacher_cache(path: Path, number: int) -> Any:
    """Open or fill a cache. RETURNS: all its records."""
    lengths = [7, 0, 60_000, 3]
    fields = {
        "tagger": {"scores": Field("token", 3, "float16")},
        "ner": {"states": Field("item", 2, "float32")},
    }

    def record(docs: range) -> Any:
        rngs = [np.random.default_rng([number, doc]) for doc in docs]
        scores = [r.normal(size=(lengths[i], 3)) for r, i in zip(rngs, docs, strict=True)]
        states = [r.normal(size=(i + 1, 2)) for r, i in zip(rngs, docs, strict=True)]
        return {
            "tagger": {"scores": [each.astype("float16") for each in scores]},
            "ner": {"states": [each.astype("float32") for each in states]},
        }

    cache = open_cache(
        path,
        fingerprint={"the teacher": f"t{number}"},
        fields=fields,
        lengths=lengths,
        record=record,
    )
    return cache.read(range(len(lengths)))


def digest(value: Any) -> str:
    """Digest nested values."""
    found = hashlib.blake2b()
    for part in flatten(value):
        found.update(part)
    return found.hexdigest()


def flatten(value: Any) -> Iterator[bytes]:
    if isinstance(value, dict):
        for key in sorted(value):
            yield from flatten([str(key), value[key]])
    elif isinstance(value, list | tuple):
        yield f"{len(value)}:".encode()
        for each in value:
            yield from flatten(each)
    elif isinstance(value, torch.Tensor | np.ndarray):
        array = np.ascontiguousarray(value)
        yield f"{array.dtype} {array.shape}".encode()
        yield array.tobytes()
    else:
        yield value if isinstance(value, bytes) else repr(value).encode()


@contextmanager
def quiet() -> Iterator[None]:
    """Silence messages on the progress of what is loaded, and the traces of libraries in Rust."""
    saved = os.dup(1), os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        for target, source in zip((1, 2), saved, strict=True):
            os.dup2(source, target)
            os.close(source)
