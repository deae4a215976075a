"""The verdicts and the sentences of the benchmark."""

from __future__ import annotations

from pathlib import Path

import spacy
from spacy.tokens import Doc, DocBin

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


def test_sentences_of_twenty_words(tmp_path: Path) -> None:
    vocab = spacy.blank("en").vocab
    lengths = (3, 20, 21, 20)
    words = [f"w{i}" for n in lengths for i in range(n)]
    starts = [i == 0 for n in lengths for i in range(n)]
    marked = tmp_path / "marked.spacy"
    DocBin(docs=[Doc(vocab, words=words, sent_starts=starts)]).to_disk(marked)
    assert [len(sentence.split()) for sentence in find_sentences(marked)] == [20, 20]
    unmarked = tmp_path / "unmarked.spacy"
    DocBin(docs=[Doc(vocab, words=words)]).to_disk(unmarked)
    assert find_sentences(unmarked) == [" ".join(words[:20])]
