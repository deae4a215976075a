"""The recipes for teachers of other packages, with stand-ins for the packages.

Each stand-in is a component under the name of the real one, with the settings that the page gives
it. It is saved and loaded by name, as the real one would be.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import spacy
from spacy.language import Language
from spacy.tokens import Doc, Span

import spacy_distil
from tests.docs.pages import PIPELINE, Block, blocks_of
from tests.docs.test_blocks import parse_part, run_commands, run_python
from tests.util import registry


@Language.factory("gliner_spacy")
class ZeroShot:
    """Finds a name wherever a capital follows a space. Like the real one, it declares nothing."""

    def __init__(self, nlp: Language, name: str, labels: list[str], style: str) -> None:
        assert style == "ent"
        self.label = labels[0]

    def __call__(self, doc: Doc) -> Doc:
        doc.ents = [Span(doc, t.i, t.i + 1, self.label) for t in doc if t.i and t.is_title]
        return doc


@Language.factory("llm")
class Prompted:
    """Answers a task of categories with certainty, as spacy-llm does."""

    def __init__(self, nlp: Language, name: str, task: Any, model: Any) -> None:
        self.labels = task

    def __call__(self, doc: Doc) -> Doc:
        best = self.labels[len(doc) % 2]
        doc.cats = {label: float(label == best) for label in self.labels}
        return doc


def categories(labels: list[str], exclusive_classes: bool) -> list[str]:
    assert exclusive_classes
    return labels


@pytest.fixture
def here(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for kind in ("llm_tasks", "llm_models"):
        if not hasattr(registry, kind):
            registry.create(kind)
    registry.llm_tasks.register("spacy.TextCat.v3", func=categories)
    registry.llm_models.register("spacy.GPT-4.v3", func=lambda: "a model")
    directory = shutil.copytree(files, tmp_path / "here")
    monkeypatch.chdir(directory)
    return directory


def recipe(part: str) -> list[Block]:
    """The blocks of the section of the recipes that has a part in one of its blocks."""
    blocks = blocks_of("docs/recipes.md")
    (section,) = {block.section for block in blocks if part in block.code}
    return [block for block in blocks if block.section == section]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "pipe", "labels"),
    [("gliner_spacy", "ner", {"person"}), ("llm_tasks", "textcat", {"travel", "food"})],
)
def test_the_recipe_runs(part: str, pipe: str, labels: set[str], here: Path) -> None:
    namespace: dict[str, Any] = {"__name__": "page"}
    runners = {"python": run_python, "bash": run_commands}
    for block in recipe(part):
        # A service may need a minute for these documents.
        code = block.code.replace("rate_limit 100 ", "rate_limit 60000 ")
        runners[block.language](replace(block, code=code), namespace)
    student: Any = spacy.load("student/model-best")
    assert student.pipe_names == ["transformer", pipe]
    assert set(student.get_pipe(pipe).labels) == labels
    assert f"{pipe} learns the teacher's" in namespace["output"]
    assert "agreement with the teacher" in " ".join(namespace["output"].split())


@pytest.mark.slow
def test_the_settings_of_the_page_run(here: Path) -> None:
    from tests.docs.configs import pipeline_config

    (block,) = [each for each in blocks_of(PIPELINE) if "my_zero_shot_component" in each.code]
    config = pipeline_config(train="dev.spacy", dev="dev.spacy", text=None)
    config["distillation"]["corpus"] = None
    config["nlp"]["pipeline"] = ["transformer", "ner"]
    config["components"] = {name: config["components"][name] for name in ("transformer", "ner")}
    teacher = spacy.blank("en")
    settings = {"labels": ["PER"], "style": "ent"}
    teacher.add_pipe("gliner_spacy", name="my_zero_shot_component", config=settings)
    config = config.merge(parse_part(block.code))
    distilled = spacy_distil.distil_pipeline(teacher, config, "out")
    assert set(spacy.load(distilled.path).get_pipe("ner").labels) >= {"PER"}  # type: ignore[attr-defined]
