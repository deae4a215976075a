"""Which students are tried, and the configs of their trainings."""

from __future__ import annotations

from pathlib import Path

import pytest
from spacy.util import load_model_from_config
from thinc.api import Config

from spacy_distil.distillation.pipeline.config import load_config
from spacy_distil.errors import ConfigError
from spacy_distil.fitting.candidates import Candidate, encoder_of, propose
from spacy_distil.fitting.costs import Costs, distance, find_misses, order_key
from spacy_distil.fitting.settings import FitSettings
from spacy_distil.runs.settings import read_section
from spacy_distil.students.shapes import Shape

SHAPE = Shape(layers=6, heads=12, ffn=1536, width=384)


def names(settings: FitSettings, n_pieces: int = 30_522, shape: Shape | None = SHAPE) -> list[str]:
    return [each.name for each in propose(shape, n_pieces, settings, has_cnn=True)]


def test_proposals() -> None:
    found = names(FitSettings(words_per_second=1))
    assert found == [
        *(f"layers-{n}{ffn}" for n in (1, 2, 3, 4, 6) for ffn in ("", "-ffn-768")),
        "cnn-96",
    ]
    # A small size needs fewer pieces, and fewer bits for each.
    small = names(FitSettings(size_mb=12, layers=[2], ffn=[1.0], cnn=[]))
    assert small == [
        "layers-2",
        "layers-2-4bits",
        "layers-2-pieces-8000",
        "layers-2-pieces-8000-4bits",
    ]
    # Most pieces of an encoder for many languages are never used.
    many = names(FitSettings(latency_ms=1, layers=[2], ffn=[0.5], cnn=[]), n_pieces=250_000)
    assert many == ["layers-2-ffn-768-pieces-8000"]
    assert names(FitSettings(size_mb=9, cnn=[64]), n_pieces=0, shape=None) == [
        *("encoder", "encoder-4bits", "cnn-64")
    ]
    all_pieces = FitSettings(size_mb=9, layers=[1], ffn=[1.0], pieces=[None, 40_000], cnn=[])
    assert names(all_pieces) == ["layers-1", "layers-1-4bits"]


def test_configs(config: Config) -> None:
    before = config.to_str()
    own = Candidate(2, 16, 100).configure(config, "cache")
    assert "fit" not in own
    settings = load_config(own)
    assert settings.cache == "cache"
    student = settings.student
    assert (student.start, student.n_layers, student.ffn) == ("teacher", 2, 16)
    assert student.vocabulary.size == 100
    assert encoder_of(own) == "transformer"
    cnn = Candidate(cnn=8).configure(config, "cache")
    assert load_config(cnn).student.start == "config"
    assert config.to_str() == before
    nlp = load_model_from_config(cnn, auto_fill=True)
    assert nlp.get_pipe_meta("transformer").factory == "tok2vec"
    assert nlp.get_pipe("tagger").model.get_ref("tok2vec").name == "tok2vec-listener"
    assert encoder_of(cnn) is None


def test_budgets() -> None:
    costs = Costs(words_per_second=25_312, p50_ms=1.5, p95_ms=4.0, size_mb=17.25, memory_mb=240)
    budget = FitSettings(words_per_second=30_000, latency_ms=2, size_mb=12, memory_mb=240)
    assert find_misses(costs, budget) == [
        "25,312 words/s (at least 30,000)",
        "17.2 MB on disk (at most 12.0)",
    ]
    assert distance(costs, budget) == pytest.approx(17.25 / 12)
    slow = FitSettings(latency_ms=2, percentile=95)
    assert find_misses(costs, slow) == ["4.0 ms (at most 2.0)"]
    assert find_misses(costs, FitSettings(words_per_second=25_312)) == []
    assert distance(costs, FitSettings(min_retention=0.9)) == 0
    assert order_key(costs, FitSettings()) == -25_312
    assert order_key(costs, FitSettings(minimize="size_mb")) == 17.25


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"words_per_second": 0}, "fit.words_per_second = 0"),
        ({"rungs": [0.5, 0.25]}, "expected ascending shares"),
        ({"embedding_bits": [2]}, "fit.embedding_bits"),
        ({"layer": [2]}, "no such setting"),
    ],
)
def test_bad_settings(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        read_section("fit", FitSettings, values)
    assert message in str(error.value)


def test_a_name_is_a_directory(tmp_path: Path) -> None:
    for candidate in propose(SHAPE, 30_522, FitSettings(size_mb=5), has_cnn=True):
        (tmp_path / candidate.name).mkdir()
