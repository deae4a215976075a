"""Which students are tried, and the configs of their trainings."""

from __future__ import annotations

from pathlib import Path

import pytest
from spacy.util import load_model_from_config
from thinc.api import Config

from spacy_distil.component.pipe import DistilTransformerPipe
from spacy_distil.component.shim import get_encoder
from spacy_distil.distillation.pipeline.config import load_config
from spacy_distil.errors import ConfigError
from spacy_distil.fitting.candidates import Candidate, Start, encoder_of, propose
from spacy_distil.fitting.costs import Costs, distance, find_all, find_misses, order_key
from spacy_distil.fitting.settings import FitSettings
from spacy_distil.runs.settings import read_section
from spacy_distil.students.shapes import Shape

SHAPE = Shape(layers=6, heads=12, ffn=1536, width=384)
TEACHER = Start(SHAPE, 30_522)


def names(settings: FitSettings, start: Start | None = TEACHER) -> list[str]:
    return [each.name for each in propose(start, settings, has_cnn=True)]


def test_proposals() -> None:
    found = names(FitSettings(words_per_second=1))
    shapes = ("", "-ffn-768", "-width-192-ffn-768")
    assert found == [
        *(f"layers-{n}{shape}" for n in (1, 2, 3, 4, 6) for shape in shapes),
        *("cnn-64", "cnn-96", "cnn-128"),
    ]
    # A small size needs fewer pieces, and fewer bits for each.
    small = names(FitSettings(size_mb=12, layers=[2], ffn=[1.0], width=[1.0], cnn=[]))
    assert small == [
        "layers-2",
        "layers-2-4bits",
        "layers-2-pieces-8000",
        "layers-2-pieces-8000-4bits",
    ]
    least = FitSettings(minimize="size_mb", layers=[2], ffn=[1.0], width=[1.0], pieces=[9], cnn=[])
    assert names(least) == ["layers-2-pieces-9-4bits", "layers-2-pieces-9"]
    # Most pieces of an encoder for many languages are never used.
    many = FitSettings(latency_ms=1, layers=[2], ffn=[0.5], width=[1.0], cnn=[])
    assert names(many, Start(SHAPE, 250_000)) == ["layers-2-ffn-768-pieces-8000"]
    other = Start(SHAPE, 9_000, is_teacher=False)
    assert names(FitSettings(size_mb=9, layers=[6], cnn=[64]), other) == [
        *("layers-6", "layers-6-4bits", "layers-6-pieces-8000", "layers-6-pieces-8000-4bits"),
        "cnn-64",
    ]
    assert names(FitSettings(size_mb=9, cnn=[64]), None) == ["cnn-64"]
    all_pieces = FitSettings(
        size_mb=9, layers=[1], ffn=[1.0], width=[1.0], pieces=[None, 40_000], cnn=[]
    )
    assert names(all_pieces) == ["layers-1", "layers-1-4bits"]
    factorized = FitSettings(
        layers=[2], ffn=[1.0], width=[0.3], embedding_size=[None, 64], share_layers=[True], cnn=[]
    )
    assert names(factorized) == [
        "layers-2-width-128-ffn-512-shared",
        "layers-2-width-128-ffn-512-embeddings-64-shared",
    ]


def test_larger_and_smaller() -> None:
    whole, narrow = Candidate(3), Candidate(3, 768, 192)
    assert whole.contains(narrow)
    assert not narrow.contains(whole)
    assert not whole.contains(whole)
    assert Candidate(3, 768).contains(narrow)
    assert not Candidate(2).contains(narrow), "one is deeper, the other wider"
    assert Candidate(2).contains(Candidate(2, share_layers=True, embedding_size=64))
    assert Candidate(2).contains(Candidate(2, pieces=8000))
    assert not Candidate(2).contains(Candidate(2, embedding_bits=4)), "the same training"
    assert Candidate(cnn=96).contains(Candidate(cnn=64))
    assert not Candidate(6).contains(Candidate(cnn=8))
    assert not Candidate(cnn=800).contains(Candidate(1))


def test_configs(config: Config) -> None:
    before = config.to_str()
    own = Candidate(2, 16, 16, pieces=100).configure(config, "cache")
    assert "fit" not in own
    settings = load_config(own)
    assert settings.cache == "cache"
    student = settings.student
    assert (student.start, student.n_layers, student.ffn) == ("teacher", 2, 16)
    assert (student.width, student.heads, student.share_layers) == (16, None, False)
    assert student.vocabulary.size == 100
    assert encoder_of(own) == "transformer"
    cnn = Candidate(cnn=8).configure(config, "cache")
    assert load_config(cnn).student.start == "config"
    assert config.to_str() == before
    nlp = load_model_from_config(cnn, auto_fill=True)
    assert nlp.get_pipe_meta("transformer").factory == "tok2vec"
    assert nlp.get_pipe("tagger").model.get_ref("tok2vec").name == "tok2vec-listener"
    assert encoder_of(cnn) is None
    lowest = Candidate(1, from_teacher=False).configure(config, "cache")
    assert load_config(lowest).student.start == "config"
    nlp = load_model_from_config(lowest, auto_fill=True)
    with nlp.select_pipes(enable="transformer"):
        nlp.initialize()
    encoder = nlp.get_pipe("transformer")
    assert isinstance(encoder, DistilTransformerPipe)
    assert get_encoder(encoder.model).n_layers == 1


def test_budgets() -> None:
    costs = Costs(17.25, words_per_second=25_312, p50_ms=1.5, p95_ms=4.0, memory_mb=240)
    budget = FitSettings(words_per_second=30_000, latency_ms=2, size_mb=12, memory_mb=240)
    assert find_misses(costs, budget) == [
        "25,312 words/s (at least 30,000)",
        "17.2 MB on disk (at most 12)",
    ]
    assert distance(costs, budget) == pytest.approx(17.25 / 12)
    slow = FitSettings(latency_ms=2, percentile=95)
    assert find_misses(costs, slow) == ["4.0 ms (at most 2)"]
    assert find_misses(costs, FitSettings(words_per_second=25_312)) == []
    assert distance(costs, FitSettings(min_retention=0.9)) == 0
    assert order_key(costs, FitSettings()) == -25_312
    assert order_key(costs, FitSettings(minimize="size_mb")) == 17.25
    # Only the size of one that was not timed is known.
    large = Costs(17.25)
    assert find_misses(large, budget) == ["17.2 MB on disk (at most 12)"]
    assert find_all(large, budget) == find_misses(large, budget)
    assert len(find_all(costs, budget)) == 4


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
    for candidate in propose(TEACHER, FitSettings(size_mb=5), has_cnn=True):
        (tmp_path / candidate.name).mkdir()
