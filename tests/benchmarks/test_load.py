from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.load.__main__ import make_table, run_step
from benchmarks.load.steps import Measurement, main, measure
from spacy_distil.errors import ConfigError

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="needs Linux, which counts memory so"
)
MEGABYTE = 1_000_000


def test_memory_is_measured_at_its_peak_and_at_the_end() -> None:
    def work() -> bytearray:
        return bytearray(b"x" * 100 * MEGABYTE)  # two copies, one of which stays

    found: list[Measurement] = []
    kept = measure("work", work, found)
    assert len(kept) == 100 * MEGABYTE
    assert found[0].peak_bytes == pytest.approx(200 * MEGABYTE, rel=0.1)
    assert found[0].kept_bytes == pytest.approx(100 * MEGABYTE, rel=0.1)


def test_steps(bert_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch, int8 = str(tmp_path / "torch"), str(tmp_path / "int8")
    steps = (
        ("plain", str(bert_dir)),
        ("initialize", str(bert_dir), torch),
        ("quantize", torch, int8),
        ("int8", int8),
    )
    found = []
    for step in steps:
        main(*step)
        lines = capsys.readouterr().out.splitlines()
        found += [Measurement(**each) for each in json.loads(lines[-1])]
    table = make_table([*found, *found], n_bytes=MEGABYTE)
    assert [row[0] for row in table.rows] == [
        "transformers and tokenizers alone",
        "nlp.initialize",
        "nlp.to_disk",
        "quantize",
        "spacy.load, int8",
        "first document, int8",
        "nlp.to_bytes, int8",
        "nlp.from_bytes, int8",
    ]
    assert all(each.seconds > 0 and each.peak_bytes >= 0 for each in found)


def test_a_step_in_a_process_of_its_own(
    torch_pipeline: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert len(run_step(("torch", str(torch_pipeline)))) == 4
    with pytest.raises(ConfigError, match=r"benchmarks\.load\.steps torch .* failed, see above"):
        run_step(("torch", str(tmp_path / "none")))
    assert "Can't find model" in capfd.readouterr().err
