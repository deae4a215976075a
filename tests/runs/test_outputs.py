"""Saved pipelines."""

from __future__ import annotations

from pathlib import Path

import pytest

from spacy_distil.errors import ConfigError
from spacy_distil.runs.outputs import check_output


def test_only_a_saved_pipeline_is_replaced(tmp_path: Path) -> None:
    output = tmp_path / "out"
    check_output(output, force=False)
    output.mkdir()
    check_output(output, force=False)
    (output / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="--force"):
        check_output(output, force=False)
    with pytest.raises(ConfigError, match="not a saved pipeline"):
        check_output(output, force=True)
    (output / "meta.json").write_text("{}")
    check_output(output, force=True)
    with pytest.raises(ConfigError, match="the pipeline itself"):
        check_output(output, force=True, source=output)
