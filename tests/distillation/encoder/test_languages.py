"""Corpora of several languages: blocks and order, cache, held-out scores, whole runs."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from spacy_distil.distillation import distil_encoder
from spacy_distil.distillation.encoder import corpus as corpus_module
from spacy_distil.distillation.encoder.building import build
from spacy_distil.distillation.encoder.config import CorpusSettings
from spacy_distil.distillation.encoder.corpus import (
    Corpus,
    Mixture,
    load_corpus,
    plan_corpus,
    shared_files,
)
from spacy_distil.distillation.encoder.distiller import Distiller
from spacy_distil.distillation.encoder.evaluation import evaluate, scores_by_language
from spacy_distil.distillation.encoder.objectives import Cosine, MaskedLM, prepare_objectives
from spacy_distil.distillation.encoder.steps import StepBlocks, held_out_batches
from spacy_distil.distillation.encoder.trainer import Trainer
from spacy_distil.errors import CorpusError
from spacy_distil.students.making import make_student
from spacy_distil.students.masking import MaskedBatch, Masking
from spacy_distil.students.teachers import Teacher, load_teacher
from spacy_distil.text.sampling import temperature_repeats
from tests.distillation.encoder.test_run import english_teacher
from tests.distillation.encoder.test_steps import MASKING
from tests.teachers import WORDS, log_of
from tests.text.test_languages import ENGLISH, GERMAN

TeacherDir = Callable[..., Path]


class Listed:
    """Stands for `Blocks`. Block i of language l holds l and i, and two pieces per block before."""

    def __init__(self, language: int, n: int) -> None:
        self.blocks = [np.array([language, i] + [9] * (2 * i)) for i in range(n)]

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, rows: Sequence[int]) -> list[np.ndarray]:
        return [self.blocks[row] for row in rows]

    def lengths(self, rows: Sequence[int]) -> np.ndarray:
        return np.array([len(self.blocks[row]) for row in rows])


def mixture(sizes: Sequence[int], alpha: float = 1.0) -> Mixture:
    blocks = {f"l{number}": Listed(number, n) for number, n in enumerate(sizes)}
    return Mixture(blocks, temperature_repeats(sizes, alpha).tolist())  # type: ignore[arg-type]


def write_words(path: Path, words: Sequence[str], n_documents: int, *, seed: int) -> Path:
    """Write documents of 50 words, each of which says much about the next."""
    rng = random.Random(seed)
    documents = []
    for _ in range(n_documents):
        place = rng.randrange(len(words))
        places = [place := (place + rng.choice([1, 1, 1, 7])) % len(words) for _ in range(50)]
        documents.append(" ".join(words[place] for place in places))
    path.write_text("\n\n".join(documents) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two invented languages of other words, the second with a sixth of the text of the first."""
    directory = tmp_path_factory.mktemp("languages")
    return {
        "large": write_words(directory / "large.txt", WORDS[:30], 60, seed=1),
        "small": write_words(directory / "small.txt", WORDS[30:], 10, seed=2),
    }


@pytest.fixture(scope="module")
def teacher(teacher_dir: TeacherDir) -> Teacher:
    return load_teacher(str(teacher_dir("bert", head=True)))


# Blocks and their order


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=5),
    st.sampled_from([0.0, 0.4, 1.0]),
    st.randoms(use_true_random=False),
)
def test_blocks_are_numbered_one_language_after_the_other(
    sizes: list[int], alpha: float, rng: random.Random
) -> None:
    blocks = mixture(sizes, alpha)
    expected = [block for number, n in enumerate(sizes) for block in Listed(number, n).blocks]
    assert len(blocks) == len(expected)
    numbers = [rng.randrange(len(expected)) for _ in range(rng.randrange(20))]
    for places in (numbers, np.array(numbers, dtype=np.int64)):
        assert [b.tolist() for b in blocks[places]] == [expected[n].tolist() for n in numbers]
        assert blocks.lengths(places).tolist() == [len(expected[n]) for n in numbers]
    with pytest.raises(IndexError):
        blocks[[len(expected)]]


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_epochs_read_languages_by_temperature(alpha: float) -> None:
    """Any number of processes, in each epoch, and a run that begins in the middle."""
    sizes = [40, 10, 3]
    blocks = mixture(sizes, alpha)
    times = [(40 / n) ** (1 - alpha) for n in sizes]
    reads = [round(n * t) for n, t in zip(sizes, times, strict=True)]
    assert blocks.epoch_length == sum(reads)
    n_epochs, per_step = 3, 7
    starts = np.arange(0, n_epochs * sum(reads) + per_step, per_step)

    def walk(first: int = 0, n_processes: int = 1, seed: int = 0) -> Iterator[tuple[int, int]]:
        """Yield language and number of the blocks in the order of the run."""
        shares = [
            StepBlocks(
                blocks,
                starts,
                masking=MASKING,
                pad_id=0,
                seed=seed,
                micro_batch=2,
                process=process,
                n_processes=n_processes,
            )
            for process in range(n_processes)
        ]
        for step in range(first, len(starts) - 1):
            rows = [
                [tuple(row[:2].tolist()) for b in share[step].micro_batches for row in b.pieces]
                for share in shares
            ]
            for place in range(per_step):  # each process takes every n-th block
                yield rows[place % n_processes][place // n_processes]

    seen = [*islice(walk(), n_epochs * sum(reads))]
    for epoch in range(n_epochs):
        part = seen[epoch * sum(reads) : (epoch + 1) * sum(reads)]
        languages = [language for language, _ in part]
        assert [languages.count(number) for number in range(3)] == reads
        for (language, _), count in Counter(part).items():
            passes = reads[language] // sizes[language]
            assert count - passes in (0, int(reads[language] % sizes[language] > 0))
        assert len(set(part)) == sum(sizes)  # none is left out
        # The languages are mixed: the first half of the epoch has its share of the largest.
        half = [language for language, _ in part[: sum(reads) // 2]]
        assert half.count(0) == pytest.approx(reads[0] / 2, abs=reads[0] / 4)
    assert seen[: sum(reads)] != seen[sum(reads) : 2 * sum(reads)]
    assert [*islice(walk(n_processes=3), len(seen))] == seen
    assert [*islice(walk(first=9), len(seen) - 9 * per_step)] == seen[9 * per_step :]
    assert [*islice(walk(seed=1), len(seen))] != seen


# Reading and caching


def load(teacher: Teacher, cache: Path, **settings: object) -> Corpus:
    corpus = CorpusSettings(**{"block_size": 16, **settings})
    return load_corpus(plan_corpus(corpus, teacher), corpus, teacher, cache=cache)


def all_blocks(blocks: Any) -> list[list[int]]:
    return [block.tolist() for block in blocks[range(len(blocks))]]


def test_a_new_language_is_the_only_one_that_is_tokenized(
    teacher: Teacher, texts: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = []

    def noted(plan: Any, *arguments: Any, **settings: Any) -> None:
        built.append(plan.setting)
        build(plan, *arguments, **settings)

    monkeypatch.setattr(corpus_module, "build", noted)
    large, small = (str(texts[name]) for name in ("large", "small"))
    cache = tmp_path / "cache"
    alone = load(teacher, cache, train=[large], dev_fraction=0.1)
    both = load(teacher, cache, languages={"a": [large], "b": [small]}, dev_fraction=0.1)
    assert built == ["corpus.train", "corpus.languages.b"]  # "a" is the text of before
    assert both.train.languages.keys() == both.held_out.languages.keys() == {"a", "b"}
    assert all_blocks(both.train.languages["a"]) == all_blocks(alone.train)
    assert all_blocks(both.held_out.languages["a"]) == all_blocks(alone.held_out)
    single = load(teacher, cache, train=[small], dev_fraction=0.1)
    assert all_blocks(both.train.languages["b"]) == all_blocks(single.train)
    assert all_blocks(both.train) == all_blocks(alone.train) + all_blocks(single.train)
    assert built == ["corpus.train", "corpus.languages.b"]
    assert list(both.sources) == ["train a", "train b"]
    assert both.sources["train b"].files == [(small, texts["small"].stat().st_size)]


def test_languages_have_held_out_files_or_a_fraction(
    teacher: Teacher, texts: dict[str, Path], tmp_path: Path
) -> None:
    large, small = (str(texts[name]) for name in ("large", "small"))
    languages = {"a": [large], "b": [small]}
    settings = {"languages": languages, "max_blocks": 30, "max_dev_blocks": 4}
    corpus = load(teacher, tmp_path, **settings, dev_languages={"b": [large]}, dev_fraction=0.5)
    # Limits and fractions are of each language.
    sizes = {name: len(blocks) for name, blocks in corpus.train.languages.items()}
    assert sizes == {"a": 26, "b": 30}
    assert {name: len(b) for name, b in corpus.held_out.languages.items()} == {"a": 4, "b": 4}
    first = all_blocks(load(teacher, tmp_path, train=[large], dev_fraction=0).train)
    assert all_blocks(corpus.held_out.languages["b"]) == first[:4]
    assert list(corpus.sources) == ["train a", "train b", "dev b"]
    # Without a fraction, only "b" has scores.
    corpus = load(teacher, tmp_path, **settings, dev_languages={"b": [large]}, dev_fraction=0)
    assert list(corpus.held_out.languages) == ["b"]


def test_errors_name_the_language(teacher: Teacher, texts: dict[str, Path], tmp_path: Path) -> None:
    large = str(texts["large"])
    with pytest.raises(
        CorpusError, match=r"corpus\.languages\.b is empty: .*--corpus\.languages\.b"
    ):
        load(teacher, tmp_path, languages={"a": [large], "b": []})
    short = tmp_path / "short.txt"
    short.write_text("ba be bi")
    with pytest.raises(CorpusError, match=r"corpus\.languages\.b makes 1 blocks"):
        load(teacher, tmp_path, languages={"a": [large], "b": [str(short)]})
    short.write_text("\n \n")
    with pytest.raises(CorpusError, match=r"corpus\.languages\.b: no text in .*short"):
        load(teacher, tmp_path, languages={"a": [large], "b": [str(short)]})


def test_files_that_are_named_twice(teacher: Teacher, texts: dict[str, Path]) -> None:
    large, small = texts["large"], texts["small"]
    again = small.parent / "." / small.name
    languages = {"a": [str(large)], "b": [str(small), str(again)]}
    settings = CorpusSettings(languages=languages, dev_languages={"a": [str(large)]}, block_size=24)
    a, b = "corpus.languages.a", "corpus.languages.b"
    assert shared_files(plan_corpus(settings, teacher)) == {
        large.resolve(): [a, "corpus.dev_languages.a"],
        small.resolve(): [b, b],
    }
    settings = CorpusSettings(languages={"a": [str(large)], "b": [str(small)]}, block_size=24)
    assert shared_files(plan_corpus(settings, teacher)) == {}


# Held-out scores


def test_scores_are_means_of_languages_that_count_the_same(
    teacher: Teacher, texts: dict[str, Path], tmp_path: Path
) -> None:
    """Each language is scored as if it were alone, however many blocks the others have."""
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=True, mixed_precision="no")
    objectives = {"mlm": MaskedLM(2.0), "cos": Cosine(3.0)}
    student = make_student(teacher, [0, 2])
    prepare_objectives(objectives, teacher.model.config, student.config)
    distiller = Distiller(teacher.model, student, objectives)
    languages = {name: [str(path)] for name, path in texts.items()}
    corpus = load(teacher, tmp_path, languages=languages, dev_fraction=0.5)
    masking = Masking.for_tokenizer(teacher.tokenizer, 0.3, seed=0)

    def batches(language: str) -> list[MaskedBatch]:
        blocks = corpus.held_out.languages[language]
        made = held_out_batches(blocks, size=5, masking=masking, pad_id=0, process=0, n_processes=1)
        return [masking(batch, language) for batch in made]

    def score(*languages: str) -> dict[str, float]:
        named = {language: batches(language) for language in languages}
        return evaluate(distiller, named, accelerator, objectives, step=0)

    alone = {language: score(language) for language in ("large", "small")}
    assert len(corpus.held_out.languages["large"]) > 5 * len(corpus.held_out.languages["small"])
    both = score("large", "small")
    divided = scores_by_language(both)
    assert list(divided) == ["", "large", "small"]
    names = {"mlm", "cos", "total", "student_accuracy"}
    assert set(divided[""]) == names | ({"teacher_accuracy"} & set(alone["large"]))
    for language, scores in alone.items():
        assert divided[language] == pytest.approx(scores, rel=1e-6)
        assert divided[language]["total"] == pytest.approx(2 * scores["mlm"] + 3 * scores["cos"])
    for name, mean in divided[""].items():
        assert mean == pytest.approx((alone["large"][name] + alone["small"][name]) / 2, rel=1e-6)
    assert alone["large"]["mlm"] != pytest.approx(alone["small"]["mlm"], rel=1e-3)


# Whole runs


def settings(
    teacher: Path, languages: dict[str, Path], corpus: dict[str, Any] | None = None, **training: Any
) -> dict[str, dict[str, Any]]:
    quick = {"max_steps": 12, "batch_size": 8, "micro_batch": 16, "learn_rate": 5e-3}
    return {
        "teacher": {"name": str(teacher)},
        "student": {"n_layers": 2},
        "corpus": {
            "languages": {name: str(path) for name, path in languages.items()},
            "block_size": 24,
            "dev_fraction": 0.1,
            **(corpus or {}),
        },
        "objectives": {
            "soft": {"@distil_objectives": "spacy-distil.SoftTargets.v1"},
            "cos": {"@distil_objectives": "spacy-distil.Cosine.v1"},
        },
        "training": {**quick, "mixed_precision": "no", "tensorboard": False, **training},
    }


def test_a_run_tells_of_each_language(
    teacher_dir: TeacherDir,
    texts: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """On the console, in the log, in TensorBoard, in the results and on the card."""
    config = settings(teacher_dir("bert", head=True), texts, {"alpha": 0.5}, tensorboard=True)
    result = distil_encoder(config, tmp_path / "out", gpu_id=-1)
    printed = " ".join(capsys.readouterr().out.split())
    first, last = log_of(result.path, "held_out")
    assert {key: last[key] for key in result.scores} == result.scores
    divided = scores_by_language(result.scores)
    assert list(divided) == ["", "large", "small"]
    names = ["soft", "cos", "total", "student_accuracy", "teacher_accuracy"]
    for scores in divided.values():
        assert list(scores) == names
    for language in ("large", "small"):
        assert last[f"{language}/total"] < first[f"{language}/total"]
    for entry in (first, last):
        line = (
            f"Total by language: large {entry['large/total']:.4f}, small {entry['small/total']:.4f}"
        )
        assert line in printed
    assert "no better" not in printed
    assert "but not in" not in printed

    corpus = CorpusSettings(**config["corpus"])
    loaded = load_teacher(config["teacher"]["name"])
    sizes = [
        len(blocks)
        for blocks in load_corpus(
            plan_corpus(corpus, loaded), corpus, loaded, cache=result.path / "cache"
        ).train.languages.values()
    ]
    share = round(sizes[1] * (sizes[0] / sizes[1]) ** 0.5)
    share = 100 * share / (share + sizes[0])
    assert (
        f"Languages in an epoch, corpus.alpha = 0.5: large {100 - share:.1f} % "
        f"({sizes[0]} blocks x 1), small {share:.1f} % ({sizes[1]} blocks x "
    ) in printed
    assert "very often" not in printed

    card = (result.path / "README.md").read_text()
    small = divided["small"]
    for part in (
        f"| train small | {texts['small']} |",
        "- train large: ",
        "in proportion to n to the power of 0.5:",
        f"| small | {sizes[1]} | {share:.1f} | ",
        "| language | loss: soft | loss: cos | loss: total | masked-LM accuracy of the student, %",
        f"| small | {small['soft']:.4f} | {small['cos']:.4f} | {small['total']:.4f} | "
        f"{100 * small['student_accuracy']:.2f} |",
    ):
        assert part in card

    (events,) = (result.path / "logs").rglob("events.out.tfevents*")
    board = EventAccumulator(str(events)).Reload()
    (*_, found) = board.Scalars("held_out/small/total")
    assert (found.step, found.value) == (12, pytest.approx(small["total"]))


@pytest.mark.slow  # and its outcome needs the random weights of transformers 4
def test_a_language_that_becomes_worse_is_told(
    teacher_dir: TeacherDir,
    texts: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The student forgets words that are rare in training, but are all of the held-out text."""
    config = settings(
        teacher_dir("bert", head=True),
        texts,
        {"dev_languages": {"small": str(texts["small"])}},
        max_steps=30,
    )
    rare = tmp_path / "rare.txt"
    rare.write_text(texts["small"].read_text()[:200])
    config["corpus"]["languages"]["small"] = str(rare)
    config["objectives"] = {"mlm": {"@distil_objectives": "spacy-distil.MaskedLM.v1"}}
    result = distil_encoder(config, tmp_path / "out", gpu_id=-1)
    printed = " ".join(capsys.readouterr().out.split())
    first, last = log_of(result.path, "held_out")
    assert last["total"] < first["total"]
    assert last["large/total"] < first["large/total"]
    assert last["small/total"] > first["small/total"]
    assert (
        "The encoder is better than at its start on the mean of the languages, but not in small. "
        "Held-out totals before the first step and after the last: small "
        f"{first['small/total']:.4g}, then {last['small/total']:.4g}. Give it more text"
    ) in printed


@pytest.mark.parametrize(("alpha", "is_told"), [(0.0, True), (1.0, False)])
def test_many_repeats_are_told(
    alpha: float,
    is_told: bool,
    teacher_dir: TeacherDir,
    texts: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    short = tmp_path / "short.txt"
    short.write_text(" ".join(WORDS[:30]))  # two blocks
    config = settings(
        teacher_dir("bert", head=True),
        {"large": texts["large"], "short": short},
        {"alpha": alpha, "dev_fraction": 0, "dev_languages": {"large": str(short)}},
        max_steps=1,
    )
    distil_encoder(config, tmp_path / "out", gpu_id=-1)
    printed = " ".join(capsys.readouterr().out.split())
    n = int(re.findall(r"large [\d.]+ % \((\d+) blocks x 1\)", printed)[0])
    times = n / 2 if is_told else 1
    assert f"(2 blocks x {times:.3g})" in printed
    warning = f"repeats small languages very often: short {times:.0f} times."
    assert (warning in printed) is is_told
    assert "Nothing is held out of short: set corpus.dev_languages or" in printed
    assert "is text of corpus.languages.short and of corpus.dev_languages.large." in printed


GERMAN_TEXT, ENGLISH_TEXT = "\n\n".join([GERMAN] * 5), "\n\n".join([ENGLISH] * 5)


@pytest.mark.parametrize(
    ("languages", "told", "not_told"),
    [
        (
            {"en": ENGLISH_TEXT, "de": GERMAN_TEXT},
            ["Text seems to be in German, but the teacher"],
            ["corpus.languages."],
        ),
        # Too few words to guess from, but a name that says it.
        ({"en": "a b c d e f g h", "de": "a b c d e f g h"}, ["Text seems to be in German"], []),
        # A name that means nothing.
        (
            {"books": ENGLISH_TEXT, "mails": GERMAN_TEXT},
            ["Text seems to be in German"],
            ["corpus.languages."],
        ),
        ({"mails": GERMAN_TEXT}, ["The corpus seems to be in German, but the teacher"], []),
        (
            {"en": ENGLISH_TEXT, "deu": ENGLISH_TEXT},
            ["corpus.languages.deu seems to be in English, not in German"],
            ["but the teacher"],
        ),
    ],
    ids=["codes", "short", "names", "one", "wrong"],
)
def test_languages_are_compared_with_their_names_and_the_teacher(
    languages: dict[str, str],
    told: list[str],
    not_told: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    teacher = english_teacher(tmp_path / "teacher")
    paths = {name: tmp_path / f"{name}.txt" for name in languages}
    for name, text in languages.items():
        paths[name].write_text(text, encoding="utf-8")
    config = settings(teacher, paths, {"dev_fraction": 0, "block_size": 8}, max_steps=1)
    del config["objectives"]["soft"]  # the teacher has no head
    distil_encoder(config, tmp_path / "out", gpu_id=-1)
    lines = re.sub(r"\s+", " ", capsys.readouterr().out)
    warnings = [line for line in lines.split("\N{WARNING SIGN}")[1:] if "seems" in line]
    assert all(any(text in line for line in warnings) for text in told)
    assert not any(text in line for line in warnings for text in not_told)


def test_a_language_alone_is_learned_as_a_corpus_without_languages(
    teacher_dir: TeacherDir, texts: dict[str, Path], tmp_path: Path
) -> None:
    teacher = teacher_dir("bert", head=True)
    named = settings(teacher, {"large": texts["large"]}, {"alpha": 0.3})
    distil_encoder(named, tmp_path / "named", gpu_id=-1)
    plain = settings(teacher, {}, {"train": str(texts["large"])})
    distil_encoder(plain, tmp_path / "plain", gpu_id=-1)
    one, two = (load_file(tmp_path / n / "model.safetensors") for n in ("named", "plain"))
    assert all(torch.equal(one[key], two[key]) for key in one)
    # The only language has no scores beside the total.
    assert log_of(tmp_path / "named", "held_out")[-1].keys() == (
        log_of(tmp_path / "plain", "held_out")[-1].keys()
    )


def test_an_interrupted_run_goes_on_with_the_same_blocks(
    teacher_dir: TeacherDir,
    texts: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In the second epoch, with a language that is repeated, and named in another order."""
    teacher = teacher_dir("bert", head=True)
    training = {"max_steps": 18, "batch_size": 16, "checkpoint_frequency": 5}
    config = settings(teacher, texts, {"alpha": 0.4}, **training)
    distil_encoder(config, tmp_path / "whole", gpu_id=-1)
    step = Trainer.step

    def interrupted(self: Trainer, number: int, *arguments: Any) -> Any:
        if number == 14:
            raise KeyboardInterrupt
        return step(self, number, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            distil_encoder(config, tmp_path / "out", gpu_id=-1)
    assert list((tmp_path / "out" / "checkpoints").iterdir())
    reversed_names = dict(reversed(config["corpus"]["languages"].items()))
    config["corpus"]["languages"] = reversed_names
    distil_encoder(config, tmp_path / "out", gpu_id=-1, resume=True)
    one, two = (load_file(tmp_path / n / "model.safetensors") for n in ("whole", "out"))
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert log_of(tmp_path / "whole", "held_out") == log_of(tmp_path / "out", "held_out")
