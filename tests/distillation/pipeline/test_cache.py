"""A cache returns its records. A cache on the disk is used, refused or replaced."""

from __future__ import annotations

import json
import mmap
import os
import pickle
import shutil
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

from spacy_distil.distillation.pipeline.cache import TeacherCache, open_cache, shards
from spacy_distil.distillation.pipeline.cache.layout import Layout
from spacy_distil.distillation.pipeline.cache.state import VERSION
from spacy_distil.distillation.pipeline.heads.base import Field
from spacy_distil.errors import ConfigError, WriteError

FIELDS = {
    "tagger": {"scores": Field("token", 5, "float16"), "labels": Field("token", 2, "int16")},
    "ner": {"states": Field("item", 3, "float32"), "keys": Field("item", 1, "uint64")},
    "textcat": {"scores": Field("doc", 4, "float32"), "seen": Field("doc", 1, "int64")},
    "parser": {},
}
DOC_FIELDS = {"textcat": {"scores": Field("doc", 3, "float32")}}
FINGERPRINT = {"the teacher": "t1", "the documents": "d1"}


class Teacher:
    """Random values of each doc, which depend on its number alone.

    fails_at: number of the doc that it cannot do. waits_at: it does nothing before all others who
    wait there have got as far. seen: numbers of the docs it was asked for.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        fields: Mapping[str, Mapping[str, Field]] = FIELDS,
        *,
        fails_at: int | None = None,
        waits_at: threading.Barrier | None = None,
    ) -> None:
        self.lengths = lengths
        self.fields = fields
        self.fails_at = fails_at
        self.waits_at = waits_at
        self.calls: list[range] = []

    @property
    def seen(self) -> list[int]:
        return [doc for call in self.calls for doc in call]

    def array(self, head: str, name: str, doc: int) -> np.ndarray:
        field = self.fields[head][name]
        rng = np.random.default_rng([doc, *f"{head} {name}".encode()])
        rows = {"token": self.lengths[doc], "doc": 1, "item": int(rng.integers(4))}[field.per]
        if np.dtype(field.dtype).kind == "f":
            return rng.normal(size=(rows, field.width)).astype(field.dtype)
        limits = np.iinfo(field.dtype)
        values = rng.integers(limits.min, limits.max, (rows, field.width), field.dtype, True)
        return values

    def record(self, docs: range) -> dict[str, dict[str, list[np.ndarray]]]:
        if self.fails_at in docs:
            raise KeyboardInterrupt
        if self.waits_at is not None:
            self.waits_at.wait(timeout=30)
        self.calls.append(docs)
        return {
            head: {name: [self.array(head, name, doc) for doc in docs] for name in names}
            for head, names in self.fields.items()
        }


def open_with(teacher: Teacher, directory: Path, **settings: Any) -> TeacherCache:
    settings = {
        "fingerprint": FINGERPRINT,
        "fields": teacher.fields,
        "lengths": teacher.lengths,
        "record": teacher.record,
        **settings,
    }
    return open_cache(directory, **settings)


def some_lengths(n_docs: int, longest: int, seed: int = 0) -> list[int]:
    """Every fifth doc is empty."""
    lengths = np.random.default_rng(seed).integers(1, longest, n_docs)
    lengths[::5] = 0
    return lengths.tolist()


def assert_reads(cache: TeacherCache, teacher: Teacher, docs: Sequence[int]) -> None:
    records = cache.read(docs)
    assert records.keys() == teacher.fields.keys()
    for head, names in teacher.fields.items():
        assert records[head].keys() == names.keys()
        for name, field in names.items():
            assert len(records[head][name]) == len(docs)
            for doc, found in zip(docs, records[head][name], strict=True):
                assert found.dtype == field.dtype
                np.testing.assert_array_equal(found, teacher.array(head, name, doc), strict=True)


def files(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def printed(capsys: pytest.CaptureFixture[str]) -> str:
    """On one line, as wasabi breaks them wherever the terminal ends."""
    return " ".join(capsys.readouterr().out.split())


# Recorded values come back


def test_everything_comes_back_in_the_order_asked_for(tmp_path: Path) -> None:
    teacher = Teacher([*some_lengths(300, 900), 70_000, 0, 3])
    cache = open_with(teacher, tmp_path / "a" / "cache")
    assert len(list((tmp_path / "a" / "cache").glob("*.safetensors"))) > 3
    docs = np.random.default_rng(1).permutation(len(teacher.lengths)).tolist()
    assert_reads(cache, teacher, [*docs, docs[0]])
    assert_reads(cache, teacher, [])
    assert_reads(pickle.loads(pickle.dumps(cache)), teacher, docs[:9])


def test_the_teacher_is_given_batches_of_whole_docs(tmp_path: Path) -> None:
    teacher = Teacher([*some_lengths(300, 900), 70_000, 0, 3])
    open_with(teacher, tmp_path)
    assert teacher.seen == list(range(len(teacher.lengths)))
    sizes = [sum(teacher.lengths[doc] for doc in call) for call in teacher.calls]
    assert all(
        size <= 5_000 or len(call) == 1 for size, call in zip(sizes, teacher.calls, strict=True)
    )
    assert np.mean(sizes) > 4_000


def test_files_are_safetensors(tmp_path: Path) -> None:
    teacher = Teacher([2, 0, 3])
    open_with(teacher, tmp_path)
    assert files(tmp_path) == ["cache.json", "shard-00000.safetensors"]
    with safe_open(tmp_path / "shard-00000.safetensors", framework="np") as shard:
        scores = [teacher.array("tagger", "scores", doc) for doc in range(3)]
        np.testing.assert_array_equal(shard.get_tensor("tagger/scores"), np.concatenate(scores))


def test_files_can_be_read_by_whom_the_umask_lets(tmp_path: Path) -> None:
    open_with(Teacher([2]), tmp_path)
    (tmp_path / "other").touch()
    modes = {path.stat().st_mode for path in tmp_path.iterdir()}
    assert len(modes) == 1


@pytest.mark.parametrize("lengths", [[], [0], [0, 0, 0]])
def test_without_tokens(lengths: list[int], tmp_path: Path) -> None:
    teacher = Teacher(lengths)
    assert_reads(open_with(teacher, tmp_path), teacher, range(len(lengths)))
    assert_reads(open_with(teacher, tmp_path), teacher, range(len(lengths)))


def test_nothing_to_record(tmp_path: Path) -> None:
    cache = open_with(Teacher([3, 4], {"parser": {}}), tmp_path / "cache")
    assert cache.read([1]) == {"parser": {}}
    assert cache.n_bytes == 0
    assert not (tmp_path / "cache").exists()


def test_docs_that_are_not_there(tmp_path: Path) -> None:
    cache = open_with(Teacher([3, 4]), tmp_path)
    for doc in (-1, 2):
        with pytest.raises(IndexError, match="from 0 to 1"):
            cache.read([0, doc])


def test_values_too_large_for_the_format(tmp_path: Path) -> None:
    fields = {"ner": {"scores": Field("token", 4, "float16"), "moves": Field("token", 1, "int16")}}
    scores = np.array([[-np.inf, 1e9, -7e4, 1.5]], dtype="float32")

    def record(value: int) -> Any:
        return lambda docs: {"ner": {"scores": [scores], "moves": [np.array([[value]])]}}

    records = open_with(Teacher([1], fields), tmp_path / "a", record=record(-(2**15))).read([0])
    assert records["ner"]["scores"][0].tolist() == [[-65504, 65504, -65504, 1.5]]
    assert records["ner"]["moves"][0].tolist() == [[-(2**15)]]
    with pytest.raises(ValueError, match=r"ner\.moves: values from 32768 .* int16"):
        open_with(Teacher([1], fields), tmp_path / "b", record=record(2**15))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": [np.ones((2, 3)), np.ones((2, 3))]}, r"tagger\.a of document 1: .* \(1, 3\)"),
        ({"a": [np.ones((2, 3)), np.ones((1, 4))]}, r"tagger\.a of document 1: .* \(1, 3\)"),
        ({"a": [np.ones((2, 3)), np.ones(3)]}, r"tagger\.a of document 1: .* got \(3,\)"),
        ({"a": [np.ones((2, 3))]}, r"tagger\.a: expected arrays of 2 documents, got 1"),
        ({"a": [np.ones((n, 3), "complex64") for n in (2, 1)]}, r"tagger\.a: .* complex64"),
        ({}, r"tagger: expected the fields \['a'\], got \[\]"),
    ],
)
def test_a_wrong_record_is_refused(arrays: Any, message: str, tmp_path: Path) -> None:
    teacher = Teacher([2, 1], {"tagger": {"a": Field("token", 3, "float16")}})
    with pytest.raises(ValueError, match=message):
        open_with(teacher, tmp_path, record=lambda docs: {"tagger": arrays})


def test_a_format_that_cannot_be_cached(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"tagger\.a: dtype = 'complex64'"):
        open_with(Teacher([2], {"tagger": {"a": Field("token", 3, "complex64")}}), tmp_path)


# Runs that go on


def test_an_interrupted_run_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lengths = [500] * 330
    with pytest.raises(KeyboardInterrupt):
        open_with(Teacher(lengths, fails_at=250), tmp_path)
    assert "shard-00001.safetensors" in files(tmp_path)
    assert "shard-00002.safetensors" not in files(tmp_path)
    capsys.readouterr()

    teacher = Teacher(lengths)
    cache = open_with(teacher, tmp_path)
    assert teacher.seen == list(range(200, 330))
    assert "in 2 of 4 shards" in printed(capsys)
    assert_reads(cache, teacher, [329, 0, 250])

    again = Teacher(lengths)
    assert_reads(open_with(again, tmp_path), again, [329, 0, 250])
    assert again.seen == []
    out = printed(capsys)
    assert out.count("cache in") == 1
    assert "Using the teacher's cache" in out
    assert "165,000 tokens" in out


def test_a_full_disk_keeps_what_is_complete(tmp_path: Path) -> None:
    """The system refuses files of more than 3 MB here, as it would any on a full disk."""
    resource = pytest.importorskip("resource")
    fields = {"tagger": {"scores": Field("token", 10, "float32")}}
    lengths = [50_000, 50_000, 100_000, 50_000]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, hard))
    try:
        with pytest.raises(WriteError, match=r"2 of 4 shards .* are complete.*--resume") as raised:
            open_with(Teacher(lengths, fields), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "shard-00002.safetensors cannot be written: File too large" in str(raised.value)
    complete = [f"shard-0000{shard}.safetensors" for shard in range(2)]
    assert files(tmp_path) == ["cache.json", *complete]

    teacher = Teacher(lengths, fields)
    assert_reads(open_with(teacher, tmp_path), teacher, [3, 2, 1, 0])
    assert teacher.seen == [2, 3]


# Caches of something else


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"fingerprint": {"the teacher": "t2", "the documents": "d1"}}, "the teacher."),
        (
            {"fingerprint": {"the teacher": "t2", "the documents": "d2"}},
            "the teacher, the documents.",
        ),
        ({"fingerprint": {"the teacher": "t1"}}, "the documents."),
        ({"lengths": [3, 0, 5]}, "the documents."),
        ({"fields": DOC_FIELDS}, "what is recorded."),
        ({"sources": {"tagger": "labels A, B"}}, "what is recorded."),
    ],
)
def test_another_cache_is_refused_or_replaced(
    changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    first = Teacher([3, 0, 4])
    open_with(first, tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    other = Teacher(changes.get("lengths", [3, 0, 4]), changes.get("fields", FIELDS))
    with pytest.raises(ConfigError, match=r"--force.*\[distillation\] cache") as raised:
        open_with(other, tmp_path, **changes)
    assert f"Changed since it was made: {words}" in str(raised.value)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert other.seen == []

    assert_reads(open_with(other, tmp_path, force=True, **changes), other, [2, 1, 0])
    assert files(tmp_path) == ["cache.json", "notes.txt", "shard-00000.safetensors"]


def test_a_replaced_cache_leaves_nothing_behind(tmp_path: Path) -> None:
    open_with(Teacher([60_000] * 3, DOC_FIELDS), tmp_path)
    assert len(files(tmp_path)) == 4
    teacher = Teacher([5], DOC_FIELDS)
    assert_reads(open_with(teacher, tmp_path, force=True), teacher, [0])
    assert files(tmp_path) == ["cache.json", "shard-00000.safetensors"]


def test_a_cache_that_fits_is_not_replaced(tmp_path: Path) -> None:
    open_with(Teacher([3, 4]), tmp_path)
    teacher = Teacher([3, 4])
    open_with(teacher, tmp_path, force=True)
    assert teacher.seen == []


def test_a_cache_with_more_heads_serves(tmp_path: Path) -> None:
    """As far as it is complete: what is missing could not be recorded whole."""
    teacher = Teacher([60_000, 3])
    open_with(teacher, tmp_path)
    fewer = {"textcat": FIELDS["textcat"]}
    idle = Teacher([60_000, 3], fewer)
    cache = open_with(idle, tmp_path)
    assert idle.seen == []
    records = cache.read([1])
    assert set(records) == {"textcat"}
    assert np.array_equal(records["textcat"]["scores"][0], teacher.array("textcat", "scores", 1))
    (tmp_path / "shard-00001.safetensors").unlink()
    with pytest.raises(ConfigError, match="what is recorded"):
        open_with(idle, tmp_path)


def test_a_cache_of_other_sources_is_refused(tmp_path: Path) -> None:
    sources = {"tagger": "labels A, B", "ner": "'entities'"}
    teacher = Teacher([3, 4])
    open_with(teacher, tmp_path, sources=sources)
    for other in ({**sources, "tagger": "labels B, A"}, {"tagger": "labels A, B"}, {}):
        with pytest.raises(ConfigError, match=r"Changed since it was made: what is recorded\."):
            open_with(teacher, tmp_path, sources=other)
    idle = Teacher([3, 4])
    open_with(idle, tmp_path, sources={**sources, "textcat": "", "parser": "records nothing"})
    fewer = Teacher([3, 4], {"tagger": FIELDS["tagger"]})
    open_with(fewer, tmp_path, sources={"tagger": "labels A, B"})
    with pytest.raises(ConfigError, match="what is recorded"):
        open_with(fewer, tmp_path, sources={"tagger": "labels B, A"})
    assert idle.seen == fewer.seen == []


def test_shards_of_another_size_are_kept(tmp_path: Path) -> None:
    """Whatever the setting is now: the teacher may be paid."""
    lengths = [3, 4, 5, 6, 2, 1]
    open_with(Teacher(lengths), tmp_path, shard_tokens=7)
    names = sorted(path.name for path in tmp_path.glob("shard-*"))
    assert len(names) > 2
    (tmp_path / names[1]).unlink()
    teacher = Teacher(lengths)
    cache = open_with(teacher, tmp_path, shard_tokens=100)
    assert sorted(path.name for path in tmp_path.glob("shard-*")) == names
    assert teacher.seen == [2]
    assert_reads(cache, teacher, range(len(lengths)))
    idle = Teacher(lengths)
    assert_reads(open_with(idle, tmp_path, shard_tokens=1), idle, range(len(lengths)))
    assert idle.seen == []


def test_another_version_is_refused(tmp_path: Path) -> None:
    open_with(Teacher([3, 4]), tmp_path)
    state = tmp_path / "cache.json"
    state.write_text(state.read_text().replace(f'"version": {VERSION}', '"version": 1'))
    with pytest.raises(ConfigError, match="the format of the cache"):
        open_with(Teacher([3, 4]), tmp_path)


def test_every_change_of_the_state_is_seen(tmp_path: Path) -> None:
    open_with(Teacher([3, 4]), tmp_path)
    path = tmp_path / "cache.json"
    state = json.loads(path.read_text())
    for key in state:
        for value in (None, True, 1.5, "text", [], {}, -1):
            path.write_text(json.dumps({**state, key: value}))
            with pytest.raises(ConfigError):
                open_with(Teacher([3, 4]), tmp_path)
    path.write_text(json.dumps({**state, "tokens": 8}))
    with pytest.raises(ConfigError, match=r"cache\.json is damaged.*Delete "):
        open_with(Teacher([3, 4]), tmp_path)


@pytest.mark.parametrize("name", ["cache.json", "shard-00000.safetensors", "thesis.docx"])
@pytest.mark.parametrize("force", [False, True])
def test_what_is_no_cache_is_left_alone(name: str, force: bool, tmp_path: Path) -> None:
    (tmp_path / name).write_text('{"mine": 1}')
    with pytest.raises(ConfigError, match=r"not a teacher's cache.*\[distillation\] cache"):
        open_with(Teacher([3, 4]), tmp_path, force=force)
    with pytest.raises(ConfigError, match="not a teacher's cache"):
        open_with(Teacher([3, 4]), tmp_path / name, force=force)
    assert files(tmp_path) == [name]
    assert (tmp_path / name).read_text() == '{"mine": 1}'


@pytest.mark.parametrize("damage", ["truncated", "empty", "garbage", "another", "other"])
def test_a_damaged_shard_is_named(damage: str, tmp_path: Path) -> None:
    lengths = [60_000, 3, 4]
    open_with(Teacher(lengths), tmp_path / "cache")
    path = tmp_path / "cache" / "shard-00001.safetensors"
    content = path.read_bytes()
    if damage == "another":  # a complete file of the same shape, but of another teacher
        open_with(Teacher(lengths), tmp_path / "other", fingerprint={"the teacher": "t2"})
        content = (tmp_path / "other" / path.name).read_bytes()
    elif damage == "other":
        content = content.replace(b"I16", b"F16", 1)
    else:
        kept = {"truncated": len(content) - 1, "empty": 0, "garbage": 0}[damage]
        content = content[:kept] + (b"\xff" * 100 if damage == "garbage" else b"")
    path.write_bytes(content)

    teacher = Teacher(lengths)
    with pytest.raises(ConfigError, match=r"shard-00001\.safetensors is damaged.*Delete it"):
        open_with(teacher, tmp_path / "cache")
    cache = open_with(teacher, tmp_path / "cache", force=True)
    assert teacher.seen == [1, 2]
    assert_reads(cache, teacher, [0, 1, 2])


@pytest.mark.parametrize("place", ["the first value", "the last value", "the header"])
def test_a_flipped_bit_is_seen_when_the_shard_is_first_read(place: str, tmp_path: Path) -> None:
    lengths = [60_000, 3, 4]
    open_with(Teacher(lengths), tmp_path)
    path = tmp_path / "shard-00001.safetensors"
    content = bytearray(path.read_bytes())
    first = 8 + int.from_bytes(content[:8], "little")
    digest = content.index(b" ", content.index(b"sha256")) + 1
    content[{"the first value": first, "the last value": -1, "the header": digest}[place]] ^= 1
    path.write_bytes(content)

    cache = open_with(Teacher(lengths), tmp_path)
    assert_reads(cache, Teacher(lengths), [0])
    with pytest.raises(ConfigError, match=r"shard-00001\.safetensors is damaged.*Delete it"):
        cache.read([1])
    teacher = Teacher(lengths)
    assert_reads(open_with(teacher, tmp_path, force=True), teacher, [0, 1, 2])
    assert teacher.seen == [1, 2]


def test_a_shard_is_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = [60_000, 3, 4]
    cache = open_with(Teacher(lengths), tmp_path)
    hashed = []
    check = shards._check_digest
    monkeypatch.setattr(shards, "_check_digest", lambda *args: hashed.append(1) or check(*args))
    for _ in range(3):
        cache.read([0, 1, 2])
        cache._shard.cache_clear()  # as if there were many shards
    assert len(hashed) == cache.layout.n_shards == 2


def test_a_shard_that_goes_missing_while_it_is_used(tmp_path: Path) -> None:
    cache = open_with(Teacher([3, 4]), tmp_path)
    (tmp_path / "shard-00000.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"cannot be read.*shard-00000\.safetensors"):
        cache.read([0])


# Several processes


@pytest.mark.parametrize("replaced", [False, True])
def test_two_that_fill_one_cache_at_once(replaced: bool, tmp_path: Path) -> None:
    """Batch by batch in step: both write each shard."""
    lengths = [20_000, 30_000, 40_000, 3, 9_000, 0, 60_000]
    if replaced:
        open_with(Teacher([60_000] * 7, DOC_FIELDS), tmp_path)
    barrier = threading.Barrier(2)
    teachers = [Teacher(lengths, waits_at=barrier) for _ in range(2)]
    with ThreadPoolExecutor(2) as executor:
        opened = [
            executor.submit(open_with, teacher, tmp_path, force=replaced) for teacher in teachers
        ]
    for cache, teacher in zip(opened, teachers, strict=True):
        assert teacher.seen == list(range(len(lengths)))
        assert_reads(cache.result(), teacher, range(len(lengths)))
    assert files(tmp_path) == [
        "cache.json",
        *(f"shard-0000{shard}.safetensors" for shard in range(3)),
    ]
    idle = Teacher(lengths)
    assert_reads(open_with(idle, tmp_path), idle, range(len(lengths)))
    assert idle.seen == []


def test_shards_that_are_deleted_while_others_are_computed_are_computed_again(
    tmp_path: Path,
) -> None:
    """As by another process that replaces the same old cache a little later."""
    teacher = Teacher([60_000] * 3, DOC_FIELDS)

    def record(docs: range) -> Any:
        if teacher.seen == [0, 1]:
            (tmp_path / "shard-00000.safetensors").unlink()
        return teacher.record(docs)

    cache = open_with(teacher, tmp_path, record=record)
    assert teacher.seen == [0, 1, 2, 0]
    assert_reads(cache, teacher, [0, 1, 2])


def test_what_killed_runs_left_is_removed(tmp_path: Path) -> None:
    """Not what somebody is writing now. Neither makes of the directory something else."""
    for name in (".unfinished-dead", ".unfinished-empty", ".unfinished-alive"):
        (tmp_path / name).mkdir()
    for name in ("dead", "alive"):
        (tmp_path / f".unfinished-{name}" / "shard-00000.safetensors").write_text("half")
    long_ago = time.time() - 3600
    for name in ("dead/shard-00000.safetensors", "dead", "empty", "alive"):
        os.utime(tmp_path / f".unfinished-{name}", (long_ago, long_ago))
    teacher = Teacher([3, 4])
    assert_reads(open_with(teacher, tmp_path), teacher, [0, 1])
    assert files(tmp_path) == [".unfinished-alive", "cache.json", "shard-00000.safetensors"]
    shutil.rmtree(tmp_path / ".unfinished-alive")


# Size and speed


@pytest.mark.parametrize("per", ["token", "doc", "item"])
def test_a_shard_has_a_limit_in_tokens_and_one_in_bytes(per: Any) -> None:
    lengths = [*some_lengths(400, 900), 130_000, 5]
    for width in (1, 20_000):
        fields = {"transformer": {"hidden": Field(per, width, "float16")}}
        layout = Layout.of(fields, lengths)
        assert [doc for i in range(layout.n_shards) for doc in layout.docs(i)] == [*range(402)]
        for shard in range(layout.n_shards):
            docs = layout.docs(shard)
            fits = layout.tokens(docs) <= 50_000 and layout.n_bytes([shard]) <= 256e6
            assert fits or len(docs) == 1
            if docs.stop < 402:  # and the next doc would have been one too many
                more = Layout(fields, layout.starts, [docs.start, docs.stop + 1])
                assert more.tokens(more.docs(0)) > 50_000 or more.n_bytes() > 256e6


def test_the_predicted_size_is_the_real_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fields = {
        "tagger": {"scores": Field("token", 9, "float16"), "labels": Field("token", 9, "int16")},
        "textcat": {"scores": Field("doc", 77, "float32")},
    }
    teacher = Teacher(some_lengths(3000, 50), fields)
    cache = open_with(teacher, tmp_path)
    real = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert Layout.of(fields, teacher.lengths).n_bytes() == pytest.approx(real, rel=0.01)
    assert cache.n_bytes == pytest.approx(real, rel=0.01)
    out = printed(capsys)
    assert f"3,000 documents, {sum(teacher.lengths):,} tokens, {real / 1e6:,.1f} MB" in out
    assert "guess" not in out


def test_the_size_of_items_is_called_a_guess(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fields = {"ner": {"states": Field("item", 100, "float32")}}
    lengths = some_lengths(100, 300)

    def record(docs: range) -> Any:
        return {"ner": {"states": [np.zeros((2 * lengths[doc], 100)) for doc in docs]}}

    cache = open_with(Teacher(lengths, fields), tmp_path, record=record)
    assert Layout.of(fields, lengths).n_bytes() == pytest.approx(cache.n_bytes, rel=0.01)
    assert "if a token has 2 items in the mean" in printed(capsys)


@pytest.mark.parametrize("force", [False, True])
def test_a_disk_without_room(force: bool, tmp_path: Path) -> None:
    if force:
        open_with(Teacher([3], DOC_FIELDS), tmp_path)
    before = files(tmp_path)
    teacher = Teacher([3, 4], {"transformer": {"hidden": Field("token", 10**14, "float16")}})
    with pytest.raises(ConfigError, match=r"needs 1,400,000,000\.0 MB more.* MB free.*hidden"):
        open_with(teacher, tmp_path, force=force)
    assert teacher.seen == []
    assert files(tmp_path) == before


def test_reading_does_not_read_the_whole_cache(tmp_path: Path) -> None:
    fields = {"transformer": {"hidden": Field("token", 1000, "float16")}}
    lengths = [1000] * 50

    def record(docs: range) -> Any:
        return {"transformer": {"hidden": [np.ones((1000, 1000), "float16") for _ in docs]}}

    cache = open_with(Teacher(lengths, fields), tmp_path, record=record)
    assert cache.n_bytes > 100e6
    cache.read([0])
    before = resident_bytes()
    assert cache.read([25])["transformer"]["hidden"][0].sum(dtype="float32") == 1e6
    assert resident_bytes() - before < 20e6


def resident_bytes() -> int:
    """Memory of this process, mapped files included."""
    statm = Path("/proc/self/statm")
    if not statm.is_file():
        pytest.skip("memory is not to be measured here")
    return int(statm.read_text().split()[1]) * mmap.PAGESIZE
