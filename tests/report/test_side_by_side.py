"""The arithmetic of `benchmarks/`: what its scripts say of what they measured."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import spacy
from spacy.tokens import Doc

from benchmarks.memory.__main__ import grow, make_texts
from benchmarks.memory.__main__ import make_table as make_memory_table
from benchmarks.run_anywhere.__main__ import find_sentences
from benchmarks.run_anywhere.rows import ROWS, TWO_THREADS, judge, make_table

BY_KEY = {row.key: row for row in ROWS}


def test_words_are_better_when_more_and_seconds_when_fewer() -> None:
    rates = judge(
        BY_KEY["encoder-torch"], TWO_THREADS, [300.0, 200.0, 500.0], [100.0, 100.0, 200.0]
    )
    assert (rates.ratio.median, rates.ratio.min, rates.ratio.max) == (2.5, 2.0, 3.0)
    assert rates.met
    starts = judge(BY_KEY["cold-start"], TWO_THREADS, [2.0, 1.0, 1.0], [8.0, 6.0, 4.5])
    assert (starts.ratio.median, starts.ratio.min, starts.ratio.max) == (4.5, 4.0, 6.0)
    assert not starts.met, "the median of 4, 6 and 4.5 is below 5"
    table = make_table([rates, starts])
    assert [row[-1] for row in table.rows] == ["yes", "no"]
    assert table.rows[0][3] == "300 (200\N{EN DASH}500) words/s"
    assert table.rows[1][4] == "6.00 (4.50\N{EN DASH}8.00) s"


def test_sentences_of_twenty_words(
    write_docs: Callable[[list[Doc]], Path],
) -> None:
    vocab = spacy.blank("en").vocab
    lengths = (3, 20, 21, 20)
    words = [f"w{i}" for n in lengths for i in range(n)]
    starts = [i == 0 for n in lengths for i in range(n)]
    marked = write_docs([Doc(vocab, words=words, sent_starts=starts)])
    assert [len(sentence.split()) for sentence in find_sentences(marked)] == [20, 20]
    unmarked = write_docs([Doc(vocab, words=words)])
    assert find_sentences(unmarked) == [" ".join(words[:20])]


def test_growth_is_of_the_last_quarter_against_the_second() -> None:
    assert grow([1, 1, 100, 100, 300, 300, 110, 110]) == pytest.approx(0.1)
    assert grow([5]) == 0


def test_every_text_is_another_one() -> None:
    texts = list(make_texts(["a b", "c"], 1000))
    assert len(set(texts)) == 1000
    assert texts[2].startswith("a b ")


def test_the_last_sample_is_shown() -> None:
    table = make_memory_table([(n * 1000, 10**6 * n) for n in range(1, 101)])
    assert len(table.rows) == 20
    assert table.rows[-1] == ["100,000", "100.0"]
