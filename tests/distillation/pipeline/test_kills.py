"""A run that is killed at the most awkward moments, and resumed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests import tiny_runs
from tests.children import digests, run, run_and_kill
from tests.kills import Counting

# When the process is killed: before the first operation with the second text in its path, after
# one with the first text.
MOMENTS = {
    "before the checkpoint after the best": ("step-00000012", ""),
    "inside model-last of the best": ("step-00000009", "/model-last/vocab"),
    "inside the checkpoint": ("step-00000006", "/model/"),
    "inside the student's to_disk": ("step-00000006", "/student/"),
    "between the checkpoint and model-last": ("step-00000006", "/model-last"),
    "between model-last and model-best": ("step-00000009", "/model-best"),
    "inside model-best": ("step-00000009", "/model-best/vocab"),
    "while the last checkpoint is removed": ("distil.json", "step-00000012"),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher and a corpus, and in `whole` the result of a run that was not killed."""
    place = tmp_path_factory.mktemp("kills").resolve()
    run((tiny_runs.prepare_pipeline, (place,)))
    run((tiny_runs.run_pipeline, (place, place / "out", {})))
    (place / "out").rename(place / "whole")
    assert json.loads((place / "whole" / "distil.json").read_text())["step"] == 9
    return place


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_the_models_are_those_of_a_run_without_a_kill(place: Path, moment: str) -> None:
    """Bit for bit. Averages of weights make the student differ from what training goes on with."""
    output = place / "out"
    shutil.rmtree(output, ignore_errors=True)
    first, only = MOMENTS[moment]
    counting = Counting(output, first=first, only=only, kill_at=1)
    assert run_and_kill((tiny_runs.run_pipeline, (place, output, {})), counting) is None
    for name in ("model-best", "model-last"):  # whole or absent at any time
        found, expected = digests(output / name), digests(place / "whole" / name)
        assert not found or found.keys() == expected.keys()
    run((tiny_runs.run_pipeline, (place, output, {"resume": True})))
    for name in ("model-best", "model-last"):
        assert digests(output / name) == digests(place / "whole" / name)
    assert {path.name for path in output.iterdir()} == {
        path.name for path in (place / "whole").iterdir()
    }


# When a process that replaces a run is killed, as above, before an operation of this number.
REPLACING = {
    "before the labels are set aside": ("", "/labels", 1),
    "before there are new labels": ("", "/labels", 2),
    "inside the new labels": ("", "/labels/", 2),
    "inside the new cache": ("", "/cache/", 3),
    "before the run begins": ("", "distil.json", 1),
}


@pytest.mark.slow
@pytest.mark.parametrize("moment", REPLACING)
def test_a_kill_before_a_run_begins_leaves_the_one_to_replace(place: Path, moment: str) -> None:
    output = place / "out"
    shutil.rmtree(output, ignore_errors=True)
    shutil.copytree(place / "whole", output)
    before = digests(output, leave_out=("cache",))
    assert {"distil.cfg", "model-best/meta.json", "labels/tagger.json"} <= before.keys()
    first, only, kill_at = REPLACING[moment]
    counting = Counting(output, first=first, only=only, kill_at=kill_at)
    # With fewer documents there is another cache.
    options = {"force": True, "overrides": {"distillation.corpus": None}}
    assert run_and_kill((tiny_runs.run_pipeline, (place, output, options)), counting) is None
    left = digests(output, leave_out=("cache",))
    assert {name for name in before if left.get(name) != before[name]} <= {
        name for name in before if name.startswith("labels/")
    }
    run((tiny_runs.run_pipeline, (place, output, {"resume": True})))
    assert digests(output, leave_out=("cache",)) == before
