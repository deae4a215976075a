"""Reading, packing, caching and the split into training and held-out blocks."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import sys
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

import numpy as np
import pytest
import spacy
from hypothesis import given, settings
from hypothesis import strategies as st
from spacy.tokens import DocBin
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from spacy_distil.distillation.encoder import building, shards
from spacy_distil.distillation.encoder.building import COUNTS, CorpusPlan, build
from spacy_distil.distillation.encoder.config import CorpusSettings
from spacy_distil.distillation.encoder.corpus import (
    Blocks,
    Corpus,
    Mixture,
    load_corpus,
    plan_corpus,
)
from spacy_distil.distillation.encoder.shards import Shards
from spacy_distil.errors import ConfigError, CorpusError, WriteError
from spacy_distil.runs import digests
from spacy_distil.runs.files import STALE_AFTER, UNFINISHED, remove_unfinished
from spacy_distil.students.teachers import Teacher, load_teacher
from spacy_distil.text import packing, plain_text
from spacy_distil.text.packing import pack, tokenize
from spacy_distil.text.plain_text import Part, TxtDocuments, find_files, read_parts

TeacherDir = Callable[..., Path]
FIRST, LAST = -1, -2
forked = pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")


@pytest.fixture(scope="module")
def teacher(teacher_dir: TeacherDir) -> Teacher:
    return load_teacher(str(teacher_dir("bert", head=True)))


def load(teacher: Teacher, cache: Path, *, checks: bool = True, **settings: object) -> Corpus:
    corpus = CorpusSettings(**{"block_size": 16, "dev_fraction": 0.0, **settings})
    plans = plan_corpus(corpus, teacher)
    return load_corpus(plans, corpus, teacher, cache=cache, checks=checks)


def all_blocks(blocks: Blocks | Mixture) -> list[list[int]]:
    return [block.tolist() for block in blocks[range(len(blocks))]]


# Reading


def test_text_has_documents_between_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffone\r\n two \r\n\r\n\n\nthree".encode())
    assert list(read_parts(path)) == [Part("one\ntwo", True), Part("three", True)]


def test_long_document_comes_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain_text, "PART_CHARACTERS", 10)
    path = tmp_path / "a.txt"
    path.write_text("eins zwei drei\nvier\nfuenf sechs\nsieben\n\nacht\n")
    parts = list(read_parts(path))
    assert parts == [
        Part("eins zwei drei", False),
        Part("\nvier\nfuenf sechs", False),
        Part("\nsieben", True),
        Part("acht", True),
    ]


text = st.text(st.sampled_from("ab \n\t\rä😀\u2028\x00"), max_size=60)


def naive_documents(content: str) -> list[list[str]]:
    """Documents of words: between blank lines, or lines where no blank line divides any."""
    documents: list[list[str]] = [[]]
    for line in content.split("\n"):
        if line.strip():
            documents[-1] += line.split()
        else:
            documents.append([])
    full = [words for words in documents if words]
    return full if len(full) > 1 else [line.split() for line in content.split("\n") if line.strip()]


@settings(max_examples=200)
@given(content=text, long=st.integers(3, 12))
def test_parts_make_up_the_documents(content: str, long: int) -> None:
    """A cut within a word changes nothing else."""
    with TemporaryDirectory() as directory, mock.patch.object(plain_text, "PART_CHARACTERS", long):
        plain = Path(directory) / "a.txt"
        plain.write_bytes(content.encode())
        parts = {"txt": list(read_parts(plain))}
        lines = Path(directory) / "a.jsonl"
        lines.write_text(json.dumps({"text": content}))
        parts["jsonl"] = list(read_parts(lines))
    assert all(len(part.text) <= 3 * long for some in parts.values() for part in some)
    documents = [""]
    for part in parts["txt"]:
        documents[-1] += part.text
        if part.ends:
            documents.append("")
    assert [d.split() for d in documents if d.strip()] == naive_documents(content)
    assert "".join(part.text for part in parts["jsonl"]) == content
    assert [part.ends for part in parts["jsonl"]] == [False] * (len(parts["jsonl"]) - 1) + [True]


def test_long_words_are_cut_and_long_lines_between_words(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("x" * 300_000 + "\n\n" + "word " * 60_000)
    parts = list(read_parts(path))
    first = [part.ends for part in parts].index(True) + 1
    assert "".join(part.text for part in parts[:first]) == "x" * 300_000
    assert {word for part in parts[first:] for word in part.text.split()} == {"word"}
    assert sum(len(part.text.split()) for part in parts[first:]) == 60_000
    assert max(len(part.text) for part in parts) <= 300_000


@pytest.mark.parametrize("line", ["word " * 1_000_000, "words word words\n" * 300_000])
@pytest.mark.parametrize("txt_documents", ["auto", "blank_lines"])
def test_memory_for_a_part_is_enough(
    tmp_path: Path, line: str, txt_documents: TxtDocuments
) -> None:
    """5 MB in one line or many, which are documents of their own or one."""
    path = tmp_path / "a.txt"
    path.write_text(line)
    del line
    tracemalloc.start()
    n_characters = sum(
        len(part.text) for part in read_parts(path, plain_text.TxtFiles(txt_documents))
    )
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert n_characters >= 4_800_000
    assert peak < 2e6


def test_calls_of_the_tokenizer_are_bounded() -> None:
    """With long parts, and with many empty ones."""
    parts = [Part("", True)] * 50_000 + [Part("x" * 100_000, True)] * 50
    calls = list(packing._calls(parts))
    assert [part for call in calls for part in call] == parts
    assert max(map(len, calls)) <= 10_001
    assert max(sum(len(part.text) for part in call) for call in calls) <= 1_100_000


def test_halves_of_characters_are_replaced(teacher: Teacher, tmp_path: Path) -> None:
    """The tokenizer rejects text with them."""
    path = tmp_path / "a.jsonl"
    path.write_text(r'{"text": "a\ud800b \ud83d\ude00"}' + "\n")
    assert list(read_parts(path)) == [Part("a\ufffdb 😀", True)]
    assert len(load(teacher, tmp_path / "cache", train=str(path)).train) == 1


def test_jsonl_and_spacy(tmp_path: Path) -> None:
    jsonl = tmp_path / "a.jsonl"
    jsonl.write_text('{"text": "Grüße", "meta": 1}\n\n{"text": "zwei"}\n', encoding="utf-8")
    assert list(read_parts(jsonl)) == [Part("Grüße", True), Part("zwei", True)]
    nlp = spacy.blank("en")
    binary = tmp_path / "a.spacy"
    DocBin(docs=[nlp("A first one."), nlp("And  another")]).to_disk(binary)
    assert list(read_parts(binary)) == [Part("A first one.", True), Part("And  another", True)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"fine\nna\xefve\n", r"a\.txt, line 2: byte 0xef .* not UTF-8.*iconv"),
        ("a.txt", "x".encode("utf-16"), r"a\.txt, line 1: byte 0xff"),
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', r"a\.jsonl, line 2: not valid JSON"),
        ("a.jsonl", b'{"txt": "x"}\n', r"a\.jsonl, line 1: no \"text\" in"),
        ("a.jsonl", b'{"text": 3}\n', r"a\.jsonl, line 1: no \"text\" in"),
        ("a.jsonl", b'["x"]\n', r"a\.jsonl, line 1: no \"text\" in"),
        ("a.jsonl", b'{"text": "x"}\n\xff\n', r"a\.jsonl, line 2: byte 0xff"),
        ("a.spacy", b"not a DocBin", r"a\.spacy is not a \.spacy file, or is damaged"),
    ],
)
def test_unreadable_content_is_named(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(CorpusError, match=message):
        list(read_parts(path))


def test_directories_are_searched(tmp_path: Path) -> None:
    for name in ("b.txt", "a.jsonl", "c.spacy", "notes.md"):
        (tmp_path / name).touch()
    found = find_files([tmp_path, tmp_path / "b.txt"], setting="corpus.train")
    assert [path.name for path in found] == ["a.jsonl", "b.txt", "c.spacy", "b.txt"]


def test_paths_that_name_no_corpus(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"corpus\.dev: .*gone\.txt does not exist"):
        find_files([tmp_path / "gone.txt"], setting="corpus.dev")
    with pytest.raises(CorpusError, match=r"holds none of \*\.txt"):
        find_files([tmp_path], setting="corpus.dev")
    (tmp_path / "a.csv").touch()
    with pytest.raises(CorpusError, match=r"suffix '\.csv'; .* \.txt, \.jsonl, \.spacy"):
        find_files([tmp_path / "a.csv"], setting="corpus.dev")


# Packing

documents = st.lists(
    st.tuples(st.lists(st.integers(0, 9), max_size=30), st.booleans()), max_size=12
)


@given(documents=documents, block_size=st.integers(3, 12))
def test_packing_loses_no_piece(documents: list[tuple[list[int], bool]], block_size: int) -> None:
    blocks = list(pack(documents, block_size=block_size, first=FIRST, last=LAST))
    for block in blocks:
        assert block[0] == FIRST
        assert block[-1] == LAST
        assert len(block) > 2
        assert FIRST not in block[1:]
    assert all(len(block) == block_size for block in blocks[:-1])
    assert all(len(block) <= block_size for block in blocks[-1:])
    packed = [piece for block in blocks for piece in block if piece >= 0]
    assert packed == [piece for pieces, _ in documents for piece in pieces]


def test_documents_are_separated_within_a_block() -> None:
    parts = [([1, 2], False), ([3], True), ([], True), ([4, 5], True), ([6], True)]
    blocks = list(pack(parts, block_size=7, first=FIRST, last=LAST))
    assert blocks == [[FIRST, 1, 2, 3, LAST, 4, LAST], [FIRST, 5, LAST, 6, LAST]]


def test_separator_opens_no_block() -> None:
    blocks = list(pack([([1, 2], True), ([3], True)], block_size=4, first=FIRST, last=LAST))
    assert blocks == [[FIRST, 1, 2, LAST], [FIRST, 3, LAST]]


def test_tokenizing_is_not_truncated_and_takes_special_pieces_for_text(teacher: Teacher) -> None:
    tokenizer = teacher.tokenizer
    long = "ba be bi " * 20
    (pieces, _), (spelled, ends) = tokenize(
        [Part(long, True), Part("ba [MASK] [SEP]", False)], tokenizer
    )
    assert tokenizer.convert_ids_to_tokens(pieces) == long.split()
    assert not ends
    assert not {tokenizer.mask_token_id, tokenizer.sep_token_id} & set(spelled)
    # The tokenizer is saved with the student, and must not have changed.
    assert not tokenizer.backend_tokenizer.encode_special_tokens


# The corpus as a whole


def test_corpus_holds_every_word_of_its_files(
    teacher: Teacher, text_file: Path, tmp_path: Path
) -> None:
    corpus = load(teacher, tmp_path, train=str(text_file))
    words = [
        teacher.tokenizer.convert_ids_to_tokens(int(piece))
        for block in all_blocks(corpus.train)
        for piece in block
        if piece not in teacher.tokenizer.all_special_ids
    ]
    assert words == text_file.read_text().split()
    source = corpus.sources["train"]
    assert source.files == [(str(text_file), text_file.stat().st_size)]
    assert source.blocks == len(corpus.train)
    assert source.pieces == sum(map(len, all_blocks(corpus.train)))


def naive_blocks(documents: list[list[int]], size: int, first: int, last: int) -> list[list[int]]:
    """Piece by piece."""
    blocks: list[list[int]] = []
    block = [first]
    for pieces in documents:
        if len(block) > 1 and len(block) < size - 1:
            block.append(last)
        for piece in pieces:
            if len(block) == size - 1:
                blocks.append([*block, last])
                block = [first]
            block.append(piece)
    return [*blocks, [*block, last]]


def test_blocks_equal_blocks_of_whole_documents(
    teacher: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Odd text, read in small parts, tokenized in small calls and written to small shards."""
    monkeypatch.setattr(plain_text, "PART_CHARACTERS", 300)
    monkeypatch.setattr("spacy_distil.text.packing.CALL_CHARACTERS", 1_000)
    monkeypatch.setattr(shards, "SHARD_BYTES", 7 * 16 * 2)
    monkeypatch.setattr(shards, "WRITTEN_ROWS", 3)
    rng = random.Random(5)
    documents = [
        "\n".join(
            " ".join(rng.choices(["ba", "be", "bi", "qu", "😀", "\x07", "ba\x00be"], k=40))
            for _ in range(rng.randint(1, 9))
        )
        for _ in range(40)
    ]
    documents[7:7] = ["ba be " * 5_000, "\x00", "😀" * 50, "[SEP] [CLS]"]
    files = []
    for number in range(4):
        files.append(str(tmp_path / f"{number}.txt"))
        Path(files[-1]).write_text("\n\n\n".join(documents[number::4]), encoding="utf-8")
    tokenizer = teacher.tokenizer
    backend = tokenizer.backend_tokenizer
    backend.encode_special_tokens = True
    in_order = [document for number in range(4) for document in documents[number::4]]
    pieces = [backend.encode(text, add_special_tokens=False).ids for text in in_order]
    backend.encode_special_tokens = False
    expected = naive_blocks(pieces, 16, tokenizer.cls_token_id, tokenizer.sep_token_id)

    corpus = load(teacher, tmp_path / "cache", train=files)
    assert len(corpus.train) == len(expected)
    assert all_blocks(corpus.train) == expected
    assert corpus.train.lengths(range(len(expected))).tolist() == [len(b) for b in expected]
    n_shards = len(list((tmp_path / "cache").rglob("*.npy")))
    assert n_shards == -(-len(expected) // 7)
    assert n_shards > 10


def test_vocabulary_beyond_two_bytes(tmp_path: Path) -> None:
    vocab = {word: i for i, word in enumerate(["[CLS]", "[SEP]", "[UNK]"])}
    vocab |= {f"w{i}": i for i in range(3, 70_000)}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]"
    )
    text = tmp_path / "a.txt"
    text.write_text("w65535 w65536 w69999 w3")
    plan = CorpusPlan("corpus.train", [text], None, "fingerprint")
    build(plan, tmp_path / "built", tokenizer=tokenizer, block_size=8)
    blocks = Blocks(Shards(tmp_path / "built", 1, 6), np.arange(1))
    assert blocks[[0]][0].tolist() == [0, 65_535, 65_536, 69_999, 3, 1]


def hashed_names(spy: mock.Mock) -> Counter[str]:
    return Counter(call.args[0].name for call in spy.call_args_list)


def test_digests_are_checked_once_before_blocks_are_read(
    teacher: Teacher,
    text_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(shards, "SHARD_BYTES", 40 * 16 * 2)
    with mock.patch.object(digests, "digest_file", wraps=digests.digest_file) as spy:
        load(teacher, tmp_path, train=str(text_file))
        built = hashed_names(spy)
        spy.reset_mock()
        corpus = load(teacher, tmp_path, train=str(text_file))
        checked = hashed_names(spy)
        spy.reset_mock()
        all_blocks(corpus.train)
        assert not spy.called
        load(teacher, tmp_path, checks=False, train=str(text_file))
        assert not spy.called
    (directory,) = tmp_path.iterdir()
    names = {path.name for path in directory.iterdir()} - {digests.SUMS}
    assert len(names) > 3
    assert built == dict.fromkeys(names, 2)  # written, and read
    assert checked == dict.fromkeys(names, 1)
    output = capsys.readouterr().out
    assert len(re.findall(r"corpus\.train: checked 0\.\d MB of blocks in \d\.\d s", output)) == 2


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def swap(path: Path) -> None:
    """Give it the content of the shard before it, which has as many rows."""
    path.write_bytes(path.with_name("blocks-00000.npy").read_bytes())


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("blocks-00001.npy", flip),
        ("blocks-00001.npy", swap),
        ("blocks-00001.npy", Path.unlink),
        (COUNTS, flip),
        (digests.SUMS, flip),
        (digests.SUMS, Path.unlink),
    ],
)
def test_changed_blocks_are_seen_before_the_first_step(
    teacher: Teacher,
    text_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    damage: Callable[[Path], None],
) -> None:
    monkeypatch.setattr(shards, "SHARD_BYTES", 40 * 16 * 2)
    load(teacher, tmp_path, train=str(text_file))
    (directory,) = tmp_path.iterdir()
    damage(directory / name)
    reason = rf"{re.escape(str(directory / name))} (has changed|cannot be read|is damaged)"
    with pytest.raises(CorpusError, match=rf"is missing or damaged \({reason}.*Delete it"):
        load(teacher, tmp_path, train=str(text_file))


def test_nothing_stays_open_or_mapped(teacher: Teacher, text_file: Path, tmp_path: Path) -> None:
    corpus = load(teacher, tmp_path, train=str(text_file))
    assert len(all_blocks(corpus.train)) > 100
    opened = [os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")]
    assert not any("blocks-" in path for path in opened)
    assert "blocks-" not in Path("/proc/self/maps").read_text()


def test_blocks_in_any_order(teacher: Teacher, text_file: Path, tmp_path: Path) -> None:
    corpus = load(teacher, tmp_path, train=str(text_file), dev_fraction=0.2)
    rows = list(range(len(corpus.train)))
    random.Random(0).shuffle(rows)
    every = all_blocks(corpus.train)
    assert [block.tolist() for block in corpus.train[rows]] == [every[row] for row in rows]
    assert corpus.train[np.array(rows[:1])][0].tolist() == every[rows[0]]
    assert corpus.train[[]] == []
    with pytest.raises(IndexError):
        corpus.train[[len(rows)]]


def test_cache_is_reused_until_content_or_settings_change(
    teacher: Teacher, text_file: Path, tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_bytes(text_file.read_bytes())
    cache = tmp_path / "cache"
    first = load(teacher, cache, train=str(text))
    built = next(cache.iterdir()) / "blocks-00000.npy"
    stamp = built.stat().st_mtime_ns

    moved = text.rename(tmp_path / "moved.txt")
    moved.touch()
    again = load(teacher, cache, train=str(moved))
    assert again.sources["train"].fingerprint == first.sources["train"].fingerprint
    assert built.stat().st_mtime_ns == stamp
    assert len(list(cache.iterdir())) == 1

    moved.write_bytes(moved.read_bytes().replace(b"ba", b"be", 1))  # of the same length
    load(teacher, cache, train=str(moved))
    load(teacher, cache, train=str(moved), block_size=20)
    load(teacher, cache, train=str(moved), max_blocks=2)
    load(teacher, cache, train=str(moved), txt_documents="lines")
    assert len(list(cache.iterdir())) == 5


@pytest.mark.parametrize(
    ("txt_documents", "n_documents"), [("auto", 2), ("lines", 3), ("blank_lines", 2)]
)
def test_documents_of_txt_files_are_told(
    teacher: Teacher,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    txt_documents: str,
    n_documents: int,
) -> None:
    text = tmp_path / "a.txt"
    text.write_text("ba be\nbi bo\n\nba\n")
    settings = {"dev_fraction": 0, "txt_documents": txt_documents}
    corpus = load(teacher, tmp_path / "cache", train=str(text), **settings)
    (block,) = all_blocks(corpus.train)
    assert block.count(teacher.tokenizer.sep_token_id) == n_documents
    told = f"a.txt: {n_documents} documents, "
    assert told in " ".join(capsys.readouterr().out.split())


def test_unfinished_cache_is_no_cache(teacher: Teacher, tmp_path: Path) -> None:
    bad = tmp_path / "a.jsonl"
    bad.write_text(json.dumps({"text": "ba be"}) + "\nnonsense\n")
    cache = tmp_path / "cache"
    with pytest.raises(CorpusError, match="line 2"):
        load(teacher, cache, train=str(bad))
    assert list(cache.iterdir()) == []


def test_a_faster_process_wins(teacher: Teacher, text_file: Path, tmp_path: Path) -> None:
    first = load(teacher, tmp_path / "cache", train=str(text_file))
    (directory,) = (tmp_path / "cache").iterdir()
    plan = CorpusPlan("corpus.train", [text_file], None, directory.name)
    build(plan, directory, tokenizer=teacher.tokenizer, block_size=16)
    assert list((tmp_path / "cache").iterdir()) == [directory]
    assert len(load(teacher, tmp_path / "cache", train=str(text_file)).train) == len(first.train)


@forked
def test_killed_while_building(teacher: Teacher, tmp_path: Path) -> None:
    text = tmp_path / "a.txt"
    text.write_text(("ba be bi bo bu " * 20 + "\n\n") * 20_000)
    cache = tmp_path / "cache"
    builder = get_context("fork").Process(
        target=load, args=(teacher, cache), kwargs={"train": str(text)}
    )
    builder.start()
    deadline = time.monotonic() + 30
    while not any(path.stat().st_size > 1000 for path in cache.rglob("*.npy")):
        assert builder.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.001)
    os.kill(builder.pid or 0, signal.SIGKILL)
    builder.join()
    assert builder.exitcode == -signal.SIGKILL
    (left,) = cache.iterdir()

    text.write_text("ba be bi bo bu " * 400)
    corpus = load(teacher, cache, train=str(text))
    assert sum(corpus.train.lengths(range(len(corpus.train)))) == corpus.sources["train"].pieces
    assert left.exists()  # it may belong to a live process
    for path in (left, *left.rglob("*")):
        os.utime(path, (0, time.time() - STALE_AFTER - 1))
    load(teacher, cache, train=str(text))
    assert not left.exists()
    assert len(list(cache.iterdir())) == 1


def load_with_little_room(teacher: Teacher, cache: Path, text: Path) -> None:
    """A system that refuses files longer than 2 kB."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, resource.RLIM_INFINITY))
    load(teacher, cache, train=str(text))


@forked
def test_disk_that_fills_up_while_building(
    teacher: Teacher, text_file: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    message = r"/cache/\w+ cannot be written: File too large\..*corpus\.cache"
    with ProcessPoolExecutor(1, mp_context=get_context("fork")) as pool:
        built = pool.submit(load_with_little_room, teacher, cache, text_file)
        with pytest.raises(WriteError, match=message):
            built.result()
    assert list(cache.iterdir()) == []


def test_disk_that_is_too_small(teacher: Teacher, tmp_path: Path) -> None:
    """The error comes before anything is read."""
    free = shutil.disk_usage(tmp_path).free
    text = tmp_path / "a.txt"
    with text.open("wb") as file:
        file.truncate(16 * free)  # a sparse file
    plan = CorpusPlan("corpus.train", [text], None, "fingerprint")
    needed = re.escape(f"{8 * free / 1e6:,.1f} MB")
    message = rf"need about {needed}, but the disk of .*cache has .* MB free.*corpus\.cache"
    with pytest.raises(CorpusError, match=message):
        build(plan, tmp_path / "cache" / "x", tokenizer=teacher.tokenizer, block_size=16)
    assert not (tmp_path / "cache").exists()


def test_disk_that_is_large_enough_for_some_text_among_metadata(
    teacher: Teacher, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "a.jsonl"
    with text.open("wb") as file:
        file.write(b"nonsense\n")
        file.truncate(4 * shutil.disk_usage(tmp_path).free)
    plan = CorpusPlan("corpus.train", [text], None, "fingerprint")
    with pytest.raises(CorpusError, match="line 1"):  # reading has begun
        build(plan, tmp_path / "cache" / "x", tokenizer=teacher.tokenizer, block_size=16)
    assert "corpus.train: its blocks need about" in " ".join(capsys.readouterr().out.split())


def test_cache_without_its_counts_is_replaced(
    teacher: Teacher, text_file: Path, tmp_path: Path
) -> None:
    """Something has deleted some of its files."""
    cache = tmp_path / "cache"
    first = load(teacher, cache, train=str(text_file))
    (directory,) = cache.iterdir()
    (directory / building.COUNTS).unlink()
    again = load(teacher, cache, train=str(text_file))
    assert again.sources == first.sources
    assert list(cache.iterdir()) == [directory]


def test_a_long_read_keeps_the_scratch_directory_alive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / f"{UNFINISHED}x" / "new"
    directory.mkdir(parents=True)
    parts = building._keep_alive(directory, iter([Part("ba", True)] * 2))
    next(parts)
    for path in (directory, directory.parent):
        os.utime(path, (0, 0))
    monkeypatch.setattr(building, "STALE_AFTER", 0.2)
    time.sleep(0.03)
    next(parts)
    remove_unfinished(tmp_path, older_than=100.0)
    assert directory.exists()


def test_a_vanished_file_is_not_reported_as_a_full_disk(teacher: Teacher, tmp_path: Path) -> None:
    plan = CorpusPlan("corpus.train", [tmp_path / "gone.txt"], None, "fingerprint")
    with pytest.raises(CorpusError, match=r"gone\.txt cannot be read: No such file"):
        build(plan, tmp_path / "cache" / "x", tokenizer=teacher.tokenizer, block_size=16)


def test_cache_that_cannot_be_written(teacher: Teacher, text_file: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.write_text("no directory")
    with pytest.raises(WriteError, match=r"/cache/\w+ cannot be written: .*corpus\.cache"):
        load(teacher, cache, train=str(text_file))


def test_held_out_blocks_are_spread_and_not_trained_on(
    teacher: Teacher, text_file: Path, tmp_path: Path
) -> None:
    whole = load(teacher, tmp_path, train=str(text_file))
    split = load(teacher, tmp_path, train=str(text_file), dev_fraction=0.1)
    n = len(whole.train)
    held_out = split.held_out.languages[""].rows
    assert len(held_out) == round(n / 10)
    assert np.diff(held_out).min() >= 9
    assert sorted([*held_out, *split.train.languages[""].rows]) == list(range(n))
    few = load(teacher, tmp_path, train=str(text_file), dev_fraction=0.1, max_dev_blocks=3)
    assert len(few.held_out) == 3


def test_held_out_files(teacher: Teacher, text_file: Path, tmp_path: Path) -> None:
    dev = tmp_path / "dev.txt"
    dev.write_text("ba be bi bo bu " * 30)
    corpus = load(teacher, tmp_path, train=str(text_file), dev=str(dev), max_dev_blocks=5)
    assert len(corpus.held_out) == 5
    words = teacher.tokenizer.convert_ids_to_tokens(all_blocks(corpus.held_out)[0])
    assert words[:4] == ["[CLS]", "ba", "be", "bi"]


def test_empty_corpora(teacher: Teacher, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"corpus\.train is empty.*--corpus\.train PATH"):
        load(teacher, tmp_path, train=[])
    empty = tmp_path / "empty.txt"
    empty.write_text("\n \n\n")
    with pytest.raises(CorpusError, match=r"corpus\.train: no text in .*empty\.txt"):
        load(teacher, tmp_path, train=str(empty))
    tiny = tmp_path / "tiny.txt"
    tiny.write_text("ba be bi")
    with pytest.raises(CorpusError, match=r"makes 1 blocks.*nothing is left to train on"):
        load(teacher, tmp_path, train=str(tiny), dev_fraction=0.1)


def test_block_longer_than_the_teacher_reads(
    teacher: Teacher, text_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"corpus\.block_size = 33: .* at most 32"):
        load(teacher, tmp_path, train=str(text_file), block_size=33)
