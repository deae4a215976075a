"""Tables of settings, and figures about them, say what the code does."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import spacy
import transformers

from spacy_distil.component.architectures import DistilTransformer
from spacy_distil.component.listener import Listener
from spacy_distil.distillation.encoder.config import (
    FREE_ON_RESUME,
    CorpusSettings,
    StageSettings,
    StudentSettings,
    TeacherSettings,
    TrainingSettings,
)
from spacy_distil.distillation.encoder.objectives import (
    Cosine,
    MaskedLM,
    SoftTargets,
    distil_objectives,
)
from spacy_distil.distillation.pipeline.calls import TeacherSettings as PipelineTeacherSettings
from spacy_distil.distillation.pipeline.config import (
    BLOCKS,
    STAGES,
    DistillationSettings,
    HiddenSettings,
)
from spacy_distil.distillation.pipeline.config import (
    FREE_ON_RESUME as PIPELINE_FREE_ON_RESUME,
)
from spacy_distil.distillation.pipeline.config import (
    StudentSettings as PipelineStudentSettings,
)
from spacy_distil.distillation.pipeline.corpus import Texts
from spacy_distil.distillation.pipeline.heads import PipeSettings, softmax
from spacy_distil.distillation.pipeline.labels import ENTITY_KINDS, KINDS
from spacy_distil.distillation.pipeline.noise import NoiseSettings
from spacy_distil.fitting.settings import FitSettings
from spacy_distil.pairs.pair_head import PairHead
from spacy_distil.pairs.qa_head import QAHead
from spacy_distil.runs.settings import Section
from spacy_distil.students.families import BERT_FORM, CUTTABLE, FAMILIES
from spacy_distil.students.flops import encoder_flops, mlm_head_flops
from spacy_distil.students.layer_choice import choose_layers
from spacy_distil.students.vocabulary import VocabularySettings
from spacy_distil.vectors.layers import VectorsHead
from tests.docs.configs import encoder_config
from tests.docs.pages import (
    ANSWERS,
    BUDGET,
    COMPONENT,
    ENCODER,
    PIPELINE,
    ROOT,
    TWO_TEXTS,
    VECTORS,
    in_backticks,
    table_after,
)


def defaults(function: Callable[..., Any]) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters.values()
    return {
        each.name: list(each.default) if isinstance(each.default, tuple) else each.default
        for each in parameters
    }


def factory_defaults(name: str) -> dict[str, Any]:
    nlp: Any = spacy.blank("en")  # knows the factories
    config = nlp.get_factory_meta(name).default_config or {}
    return {key: value for key, value in config.items() if key != "model"}


def section_defaults(section: type[Section], blocks: Sequence[str] = ()) -> dict[str, Any]:
    """Return the settings of a section without its blocks, which have tables of their own."""
    return {
        name: inspect.Parameter.empty
        if field.is_required()
        else field.get_default(call_default_factory=True)
        for name, field in section.model_fields.items()
        if name not in blocks
    }


def distillation_defaults() -> dict[str, Any]:
    """Return the settings of [distillation] that are not blocks of their own."""
    settings = section_defaults(DistillationSettings)
    return {k: v for k, v in settings.items() if k not in BLOCKS}


@pytest.mark.parametrize(
    ("page", "text", "expected"),
    [
        (COMPONENT, "of `spacy-distil.DistilTransformer.v1`", partial(defaults, DistilTransformer)),
        (COMPONENT, "of `spacy-distil.Listener.v1`", partial(defaults, Listener)),
        (
            COMPONENT,
            "of the factory `distil_transformer`",
            partial(factory_defaults, "distil_transformer"),
        ),
        (COMPONENT, "of the factory `distil_ner`", partial(factory_defaults, "distil_ner")),
        (ENCODER, "\n`[teacher]`:", partial(section_defaults, TeacherSettings)),
        (
            ENCODER,
            "\n`[student]`:",
            partial(section_defaults, StudentSettings, blocks=("vocabulary",)),
        ),
        (ENCODER, "\n`[student.vocabulary]`:", partial(section_defaults, VocabularySettings)),
        (ENCODER, "\n`[corpus]`:", partial(section_defaults, CorpusSettings)),
        (ENCODER, "\n`[stages.NAME]`:", partial(section_defaults, StageSettings)),
        (ENCODER, "\n`[training]`:", partial(section_defaults, TrainingSettings)),
        (PIPELINE, "\n`[distillation]`:", distillation_defaults),
        (
            PIPELINE,
            "\n`[distillation.teacher]`",
            partial(section_defaults, PipelineTeacherSettings),
        ),
        (
            PIPELINE,
            "\n`[distillation.student]`:",
            partial(section_defaults, PipelineStudentSettings, blocks=("vocabulary",)),
        ),
        (
            PIPELINE,
            "\n`[distillation.student.vocabulary]`:",
            partial(section_defaults, VocabularySettings),
        ),
        (
            PIPELINE,
            "\n`[distillation.noise]`",
            partial(section_defaults, NoiseSettings),
        ),
        (
            PIPELINE,
            "\n`[distillation.hidden]`:",
            partial(section_defaults, HiddenSettings),
        ),
        (
            PIPELINE,
            "\n`[distillation.pipes.NAME]`",
            partial(section_defaults, PipeSettings),
        ),
        (PIPELINE, "\n`spacy-distil.Texts.v1`", partial(defaults, Texts)),
        (BUDGET, "\nSettings of the search", partial(section_defaults, FitSettings)),
        (VECTORS, "of the factory `distil_vectors`", partial(factory_defaults, "distil_vectors")),
        (VECTORS, "of its model, `spacy-distil.VectorsHead.v1`", partial(defaults, VectorsHead)),
        (TWO_TEXTS, "of the factory `distil_pair`", partial(factory_defaults, "distil_pair")),
        (TWO_TEXTS, "of its model, `spacy-distil.PairHead.v1`", partial(defaults, PairHead)),
        (ANSWERS, "of the factory `distil_qa`", partial(factory_defaults, "distil_qa")),
        (ANSWERS, "of its model, `spacy-distil.QAHead.v1`", partial(defaults, QAHead)),
    ],
)
def test_settings_and_defaults_are_those_of_the_code(
    page: str, text: str, expected: Callable[[], dict[str, Any]]
) -> None:
    documented = {}
    for name, default, explanation in table_after(text, page):
        value = json.loads(default.strip("`")) if default else inspect.Parameter.empty
        documented[name.strip("`")] = value
        assert explanation
    assert documented == expected()


def test_what_the_table_says_of_batches(bert_dir: Path, onnx_pipeline: Path) -> None:
    from spacy_distil.engines import frozen, onnx
    from spacy_distil.engines import torch as engine

    (row,) = (
        row
        for row in table_after("of `spacy-distil.DistilTransformer.v1`")
        if "max_batch" in row[0]
    )
    sizes = (
        *(engine.CPU_BATCH_PIECES, engine.GPU_BATCH_PIECES),
        *(onnx.BATCH_PIECES, frozen.BATCH_PIECES),
    )
    assert [int(each.replace(",", "")) for each in re.findall(r"\d[\d,]+", row[2])] == [*sizes]


# Encoder distillation: further tables and figures


def test_objectives_are_those_of_the_code() -> None:
    made = {
        name: make
        for name, make in distil_objectives.get_all().items()
        if name.startswith("spacy-distil.")
    }
    words = {
        "teacher": "teacher",
        "teacher_head": "head of the teacher",
        "student_head": "head of the student",
        "masking": "masked pieces",
    }
    documented: dict[str, set[str]] = {}
    for name, _, needs, _ in table_after("## Objectives", ENCODER):
        documented[name.strip("`")] = set(needs.split(", "))
    assert documented == {
        name: {word for key, word in words.items() if getattr(make().needs, key)}
        for name, make in made.items()
    }
    settings: dict[str, dict[str, Any]] = {}
    for name, setting, default, explanation in table_after("**Cost.**", ENCODER):
        assert explanation
        block = settings.setdefault(f"spacy-distil.{name}.v1", {})
        block[setting.strip("`")] = json.loads(default.strip("`"))
    assert settings == {name: defaults(make) for name, make in made.items()}


def test_layers_and_families_are_those_of_the_code() -> None:
    chosen = {}
    for layers, numbers in table_after("**Layers.**", ENCODER):
        value = json.loads(layers.strip("`"))
        chosen[layers] = [int(number) for number in numbers.split(", ")]
        n_layers = 4 if isinstance(value, str) else None
        assert choose_layers(value, n_layers, available=12) == chosen[layers]
    assert len(chosen) == 5
    rows = table_after("Compare numbers", ENCODER)
    names = [in_backticks(row[:1]) for row in rows]
    assert {name for each in names for name in each} == set(FAMILIES)
    for column, families in ((2, CUTTABLE), (3, BERT_FORM)):
        can = [
            name
            for row, each in zip(rows, names, strict=True)
            for name in each
            if row[column] == "yes"
        ]
        assert set(can) == set(families)


def test_what_may_change_on_resume_is_what_the_code_lets_change() -> None:
    text = (ROOT / ENCODER).read_text(encoding="utf8")
    match = re.search(r"A resumed run may change(.*?)\. ", text, re.DOTALL)
    assert match is not None
    names = [name if "." in name else f"training.{name}" for name in in_backticks(match.groups())]
    assert set(names) == FREE_ON_RESUME


def test_operations_are_what_the_page_says() -> None:
    teacher, student = (transformers.BertConfig(num_hidden_layers=n) for n in (12, 6))
    forward = encoder_flops(teacher, 512)
    both = forward + encoder_flops(student, 512, backward=True)
    heads = [0.15 * mlm_head_flops(student, backward=backward) for backward in (False, True)]
    text = " ".join((ROOT / ENCODER).read_text(encoding="utf8").split())
    assert f"costs {both / 1e6:.0f} MFLOP per piece" in text
    assert f"forward pass is {forward / both:.0%}".replace("%", " %") in text
    assert f"Soft targets add {sum(heads) / 1e6:.0f}." in text
    assert f"Masked LM adds {heads[1] / 1e6:.0f} if it is alone;" in text


def test_the_default_is_distilberts_sum() -> None:
    """Soft targets, masked LM and cosine, with the weights on the page."""
    blocks = encoder_config(teacher="", text="")["objectives"]
    active = {b["@distil_objectives"]: b["weight"] for b in blocks.values() if b["weight"]}
    kinds = (SoftTargets, MaskedLM, Cosine)
    assert active == {
        f"spacy-distil.{kind.__name__}.v1": weight
        for kind, weight in zip(kinds, (5, 2, 1), strict=True)
    }


# Pipeline distillation: further tables


def test_stages_are_those_of_the_code() -> None:
    documented = {}
    for name, *numbers, explanation in table_after("\n`[distillation.stages.NAME]`:", PIPELINE):
        names = ("share", "hidden", "vectors", "soft", "gold")
        documented[name.strip("`")] = dict(zip(names, map(float, numbers), strict=True))
        assert explanation
    assert documented == {name: each.model_dump() for name, each in STAGES.items()}
    assert [*documented] == [*STAGES]


def test_kinds_of_pipes_are_those_of_the_code() -> None:
    """Entity recognizers and parsers learn from silver annotation, the others do not."""
    rows = table_after("## Kinds of pipes", PIPELINE)
    documented = {name: row for row in rows for name in in_backticks(row[:1])}
    beams = {"beam_ner", "beam_parser"}  # their soft targets are refused
    assert documented.keys() == KINDS.keys() - beams
    silver = {name for name, row in documented.items() if "silver" in row[1]}
    entities = {name for name, kind in KINDS.items() if kind in ENTITY_KINDS}
    assert silver == {"parser", *entities} - beams
    text = (ROOT / PIPELINE).read_text(encoding="utf8")
    assert f"the {softmax.TOP_K} most probable labels" in " ".join(text.split())


def test_what_may_change_on_resume_of_a_pipeline() -> None:
    text = (ROOT / PIPELINE).read_text(encoding="utf8")
    match = re.search(r"A resumed run may change(.*?)\. ", text, re.DOTALL)
    assert match is not None
    assert set(in_backticks(match.groups())) == PIPELINE_FREE_ON_RESUME
