"""A student takes labels, layers and heads from its teacher before its first step."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import spacy
from confection import Config
from spacy.language import Language
from spacy.tokens import Doc
from spacy.training import Example

from spacy_distil.distillation.pipeline.config import StudentSettings
from spacy_distil.distillation.pipeline.student import (
    check_gold_labels,
    copy_heads,
    find_obstacle,
    save_labels,
    start_from_teacher,
)
from spacy_distil.errors import ConfigError
from tests.distillation.pipeline.util import (
    PIPES,
    annotated_examples,
    build_pipeline,
    pipe_config,
)
from tests.util import LISTENER, encoder_of, torch_model_of, write_encoder

SAME = {name: name for name in PIPES}
TEXTS = ("We paid $ 20 in Rome Ann visited New Oslo .", "Bob visited New Zürich .", "")


def student_config(encoder: Path, pipes: Sequence[str] | Mapping[str, str]) -> Config:
    """The config of `build_pipeline`, as a file would hold it."""
    nlp = build_pipeline(encoder, pipes)
    config = nlp.config.copy()
    config["paths"]["encoder"] = str(encoder)
    config["components"]["transformer"]["model"]["name"] = "${paths.encoder}"
    return Config().from_str(config.to_str(interpolate=False), interpolate=False)


def initialized(
    config: Config, examples: Callable[[Language], list[Example]] = annotated_examples
) -> Language:
    """The student of a config, initialized on its own examples."""
    # Through the text, as a config is saved and read.
    nlp = spacy.util.load_model_from_config(
        Config().from_str(config.to_str(interpolate=False), interpolate=False), auto_fill=True
    )
    nlp.initialize(lambda: examples(nlp))
    return nlp


@pytest.fixture
def no_gold() -> Callable[[Language], list[Example]]:
    """Examples that show a student none of the teacher's labels."""

    def make(nlp: Language) -> list[Example]:
        return [Example.from_dict(nlp.make_doc("Some words here"), {})]

    return make


# Labels


def test_labels_of_each_pipe_come_from_the_teacher(
    teacher: Language, bert_dir: Path, tmp_path: Path, no_gold: Any
) -> None:
    config = student_config(bert_dir, PIPES)
    saved = save_labels(teacher, config, tmp_path / "labels", SAME)
    assert config == student_config(bert_dir, PIPES)  # left as it was
    names = sorted(path.stem for path in (tmp_path / "labels").iterdir())
    assert names == sorted(set(PIPES) - {"senter"})
    student = initialized(saved, no_gold)
    for name in PIPES:
        own: Any = student.get_pipe(name)
        pipe: Any = teacher.get_pipe(name)
        assert own.labels == pipe.labels, name
        if name not in ("parser", "ner"):
            assert own.label_data == pipe.label_data, name
    assert "$" in student.get_pipe("tagger").labels
    for name in ("parser", "ner"):
        own, pipe = student.get_pipe(name), teacher.get_pipe(name)
        assert own.moves.n_moves == pipe.moves.n_moves > 5
        moves = range(own.moves.n_moves)
        assert list(map(own.moves.get_class_name, moves)) == list(
            map(pipe.moves.get_class_name, moves)
        )


@pytest.mark.parametrize("kind", ["ner", "distil_ner"])
def test_labels_of_one_kind_of_entity_recognizer_fit_the_other(
    kind: str, bert_dir: Path, tmp_path: Path, no_gold: Any
) -> None:
    other = {"ner": "distil_ner", "distil_ner": "ner"}[kind]
    teacher = build_pipeline(bert_dir, {"names": kind})
    teacher.initialize(lambda: annotated_examples(teacher))
    config = student_config(bert_dir, {"entities": other})
    student = initialized(save_labels(teacher, config, tmp_path, {"entities": "names"}), no_gold)
    assert set(student.get_pipe("entities").labels) == {"PER", "LOC"}
    # As if it had seen them itself.
    alone = initialized(config)
    pipe: Any = student.get_pipe("entities")
    expected: Any = alone.get_pipe("entities")
    if other == "ner":
        assert set(pipe.move_names) == set(expected.move_names)
        assert pipe.moves.n_moves == expected.moves.n_moves
    else:
        assert pipe.model.get_dim("nO") == expected.model.get_dim("nO") == 9


def test_labels_that_the_student_does_not_take(
    teacher: Language, bert_dir: Path, tmp_path: Path
) -> None:
    pipes = {
        "tagger": "tagger",
        "second": "tagger",
        "third": "tagger",
        "textcat": "textcat_multilabel",
        "ner": "ner",
    }
    config = student_config(bert_dir, pipes)
    own = {"@readers": "spacy.read_labels.v1", "path": "own.json", "require": False}
    config["initialize"]["components"] = {"ner": {"labels": own}}
    pairs = {"third": "tagger", "ner": "ner", "textcat": "textcat"}
    saved = save_labels(teacher, config, tmp_path / "labels", pairs)
    assert set(saved["initialize"]["components"]) == {"ner", "third"}
    assert saved["initialize"]["components"]["ner"]["labels"] == own
    assert [path.name for path in (tmp_path / "labels").iterdir()] == ["third.json"]
    labels = json.loads((tmp_path / "labels" / "third.json").read_text(encoding="utf8"))
    assert labels == list(teacher.get_pipe("tagger").labels)


# Gold annotation


def relabelled(nlp: Language, **annotation: Any) -> list[Example]:
    """The usual examples and one more."""
    words = annotation.pop("words", ["Ann", "visited", "Rome"])
    doc = Doc(nlp.vocab, words=words)
    return [*annotated_examples(nlp), Example.from_dict(doc, annotation)]


def test_gold_labels_that_the_student_has_are_accepted(teacher: Language) -> None:
    check_gold_labels(teacher, annotated_examples(teacher))
    check_gold_labels(teacher, [])
    check_gold_labels(teacher, relabelled(teacher))


@pytest.mark.parametrize(
    ("pipe", "annotation", "unknown", "known"),
    [
        ("tagger", {"tags": ["NNP", "VBZ", "$"]}, "VBZ", "$, ., CD, IN, NNP, PRP, VBD"),
        (
            "morphologizer",
            {"pos": ["PROPN", "VERB", "PROPN"], "morphs": ["Number=Sing", "", "Number=Plur"]},
            "Number=Plur|POS=PROPN, POS=VERB",
            "NumType=Card|POS=NUM, Number=Plur|POS=PRON",
        ),
        (
            "parser",
            {"heads": [1, 1, 1], "deps": ["agent", "root", "dobj"]},
            "agent",
            "ROOT, compound, dep",
        ),
        ("ner", {"entities": ["U-PER", "O", "U-GPE"]}, "GPE", "LOC, PER"),
        ("textcat", {"cats": {"travel": 1.0, "sports": 0.0}}, "sports", "food, travel"),
    ],
)
def test_gold_labels_that_a_pipe_lacks(
    teacher: Language, pipe: str, annotation: dict[str, Any], unknown: str, known: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        check_gold_labels(teacher, relabelled(teacher, **annotation))
    message = str(raised.value)
    assert f"{pipe!r}\n  only in the annotation: {unknown}\n  of the pipe: {known}" in message
    assert 'target = "gold"' in message
    others = set(PIPES) - {pipe}
    assert not [name for name in others if f"{name!r}\n" in message]
    check_gold_labels(teacher, relabelled(teacher, **annotation), frozen=[pipe])


def test_distil_ner_lacks_a_gold_label(bert_dir: Path) -> None:
    nlp = build_pipeline(bert_dir, ["distil_ner"])
    nlp.initialize(lambda: annotated_examples(nlp))
    check_gold_labels(nlp, annotated_examples(nlp))
    with pytest.raises(ConfigError, match="'distil_ner'\n  only in the annotation: GPE"):
        check_gold_labels(nlp, relabelled(nlp, entities=["O", "O", "U-GPE"]))


def test_annotation_that_is_missing_is_no_label(teacher: Language) -> None:
    partial = relabelled(
        teacher,
        tags=["NNP", "", "!VBD"],  # the last one is known not to be VBD
        entities=["-", "-", "O"],
        cats={},
    )
    token = partial[-1].reference[2]  # the only one with morphology
    token.pos_ = "PRON"
    token.set_morph("Number=Plur")
    check_gold_labels(teacher, partial)


def test_dependencies_that_the_parser_passes_over_for_being_rare(bert_dir: Path) -> None:
    nlp = build_pipeline(bert_dir, [])
    nlp.add_pipe("parser", config={**pipe_config("parser"), "min_action_freq": 4})
    nlp.initialize(lambda: annotated_examples(nlp))

    def rare(left: int, right: int) -> list[Example]:
        words = ["x"] * (left + right + 1)
        deps = ["agent"] * left + ["ROOT"] + ["agent"] * right
        return relabelled(nlp, words=words, heads=[left] * len(words), deps=deps)

    check_gold_labels(nlp, rare(3, 0))
    check_gold_labels(nlp, rare(3, 3))  # the parser counts by direction
    with pytest.raises(ConfigError, match="agent"):
        check_gold_labels(nlp, rare(4, 3))


def test_dependencies_that_are_known_in_crossing_arcs_alone(bert_dir: Path) -> None:
    # The arc from b to d crosses that from c to the root: the parser knows "appos||obj" alone.
    crossing = {"words": list("abcd"), "heads": [0, 0, 0, 1], "deps": ["ROOT", "obj", "x", "appos"]}
    nlp = build_pipeline(bert_dir, ["parser"])
    nlp.initialize(lambda: relabelled(nlp, **dict(crossing)))
    parser: Any = nlp.get_pipe("parser")
    assert any("appos||" in label for by in parser.moves.labels.values() for label in by)
    check_gold_labels(nlp, relabelled(nlp, **dict(crossing)))


# The encoder


@pytest.mark.parametrize(
    ("layers", "n_layers", "expected"),
    [
        ("first", None, [0, 1]),
        ("even", 2, [0, 2]),
        ([1, 3], None, [1, 3]),
        ("first", 4, [0, 1, 2, 3]),
    ],
)
def test_encoder_is_made_of_the_trained_layers(
    tmp_path: Path, layers: Any, n_layers: int | None, expected: list[int]
) -> None:
    source = write_encoder(tmp_path / "source", "bert", layers=4, seed=1)
    teacher = build_pipeline(source, ["tagger"])
    teacher.initialize(lambda: annotated_examples(teacher))
    for parameter in torch_model_of(teacher).parameters():  # as training does
        parameter.data += 1
    config = student_config(tmp_path / "nowhere", ["tagger"])
    config["components"]["transformer"]["model"].update({"pooling": "last", "overlap": 8})
    assert find_obstacle(teacher, config) is None
    directory = tmp_path / "encoder"
    started = start_from_teacher(
        config, teacher, directory, StudentSettings(layers=layers, n_layers=n_layers)
    )
    assert config["components"]["transformer"]["model"]["name"] == "${paths.encoder}"
    student = initialized(started)
    settings = student.config["components"]["transformer"]["model"]
    assert settings["name"] == str(directory)
    assert (settings["pooling"], settings["overlap"]) == ("last", 8)
    weights = torch_model_of(student).state_dict()
    trained = torch_model_of(teacher).state_dict()
    assert weights.keys() < trained.keys() or len(expected) == 4
    for key, value in weights.items():
        prefix, found, rest = key.partition(".layer.")
        if found:
            number, rest = rest.split(".", 1)
            key = f"{prefix}{found}{expected[int(number)]}.{rest}"
        np.testing.assert_array_equal(value, trained[key], err_msg=key)
    layer_numbers = {key.split(".layer.")[1].split(".")[0] for key in weights if ".layer." in key}
    assert len(layer_numbers) == len(expected)


@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta"])
def test_pieces_of_the_student_are_the_teachers(
    encoder_dirs: dict[str, Path], tmp_path: Path, family: str
) -> None:
    cased = shutil.copytree(encoder_dirs[family], tmp_path / "cased")
    tokenizer = json.loads((cased / "tokenizer.json").read_text(encoding="utf8"))
    # Unlike what the classes of these families do unless they are told.
    tokenizer["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "NFD"}]}
    (cased / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf8")
    teacher = build_pipeline(cased, ["tagger"])
    teacher.initialize(lambda: annotated_examples(teacher))
    config = student_config(cased, ["tagger"])
    student = initialized(
        start_from_teacher(config, teacher, tmp_path / "start", StudentSettings(n_layers=1))
    )
    own, other = (
        json.loads(encoder_of(nlp).loaded.tokenizer.to_str()) for nlp in (student, teacher)
    )
    assert other["normalizer"] == tokenizer["normalizer"]
    assert own == other


def test_when_the_teacher_has_no_layers_to_give(
    teacher: Language, onnx_pipeline: Path, encoder_dirs: dict[str, Path], tmp_path: Path
) -> None:
    config = student_config(encoder_dirs["bert"], ["tagger"])
    assert find_obstacle(teacher, config) is None
    assert "the teacher has no components" in (find_obstacle(spacy.blank("en"), config) or "")
    onnx = find_obstacle(spacy.load(onnx_pipeline), config)
    assert "engine = 'onnx'" in (onnx or "")
    modernbert = build_pipeline(encoder_dirs["modernbert"], ["tagger"])
    modernbert.initialize(lambda: annotated_examples(modernbert))
    assert "'modernbert'" in (find_obstacle(modernbert, config) or "")
    # A component that is not in the pipeline is not there.
    config["nlp"]["pipeline"].remove("transformer")
    assert "the student has no components" in (find_obstacle(teacher, config) or "")
    config["nlp"]["pipeline"].insert(0, "transformer")
    with pytest.raises(ConfigError, match=r"start from the teacher's layers: .* 'modernbert'"):
        start_from_teacher(config, modernbert, tmp_path / "encoder", StudentSettings())
    assert not (tmp_path / "encoder").exists()


# The heads


def scores_of(nlp: Language, name: str, docs: list[Doc]) -> np.ndarray:
    """All scores of a pipe; of parsers those at the first states."""
    pipe: Any = nlp.get_pipe(name)
    scores = pipe.model.predict(docs)
    if name in ("parser", "ner"):
        return np.array(scores.predict(pipe.moves.init_batch(docs)))
    return np.concatenate(scores) if isinstance(scores, list) else np.array(scores)


@pytest.fixture
def whole_student(teacher: Language, bert_dir: Path, tmp_path: Path) -> Language:
    """A student of all the teacher's layers, before its heads are copied."""
    config = save_labels(teacher, student_config(bert_dir, PIPES), tmp_path / "labels", SAME)
    config = start_from_teacher(config, teacher, tmp_path / "encoder", StudentSettings(n_layers=2))
    return initialized(config)


def test_student_with_all_of_the_teacher_predicts_the_same(
    teacher: Language, whole_student: Language
) -> None:
    student = whole_student
    docs = {id(nlp): [nlp.make_doc(text) for text in TEXTS[:2]] for nlp in (teacher, student)}
    for nlp in (teacher, student):
        for doc in docs[id(nlp)]:
            nlp.get_pipe("transformer")(doc)

    def scores(name: str) -> tuple[np.ndarray, np.ndarray]:
        own, other = (scores_of(nlp, name, docs[id(nlp)]) for nlp in (student, teacher))
        assert own.shape == other.shape
        return own, other

    for name in PIPES:
        own, other = scores(name)
        assert not np.allclose(own, other, atol=1e-3), name
    copied = copy_heads(student, teacher, SAME)
    assert copied == dict.fromkeys(PIPES, "copied")
    for name in PIPES:
        own, other = scores(name)
        np.testing.assert_allclose(own, other, rtol=0, atol=1e-6, err_msg=name)
    for text in TEXTS:
        own_doc, doc = student(text), teacher(text)
        assert own_doc.cats == pytest.approx(doc.cats)
        own_json, expected = own_doc.to_json(), doc.to_json()
        del own_json["cats"], expected["cats"]
        assert own_json == expected
        assert str([each.morph for each in own_doc]) == str([each.morph for each in doc])


def test_copied_heads_are_copies(teacher: Language, whole_student: Language) -> None:
    before = {name: teacher.get_pipe(name).model.to_bytes() for name in PIPES}
    copy_heads(whole_student, teacher, SAME)
    for name in PIPES:
        for node in whole_student.get_pipe(name).model.walk():
            for parameter in node.param_names:
                if node.has_param(parameter):
                    node.get_param(parameter)[:] = 7
    assert before == {name: teacher.get_pipe(name).model.to_bytes() for name in PIPES}


def test_moves_that_a_parser_does_not_take_yet(teacher: Language, whole_student: Language) -> None:
    ner: Any = whole_student.get_pipe("ner")
    ner.model.attrs["unseen_classes"] = {1}
    copy_heads(whole_student, teacher, {"ner": "ner"})
    assert ner.model.attrs["unseen_classes"] == set()


def private_tagger(*, depth: int = 1, embed_size: int = 50) -> Language:
    """A tagger with layers of its own, which is initialized."""
    tok2vec = {
        "@architectures": "spacy.HashEmbedCNN.v2",
        "width": 16,
        "depth": depth,
        "embed_size": embed_size,
        "window_size": 1,
        "maxout_pieces": 2,
        "subword_features": True,
        "pretrained_vectors": None,
    }
    nlp = spacy.blank("en")
    nlp.add_pipe(
        "tagger", config={"model": {"@architectures": "spacy.Tagger.v2", "tok2vec": tok2vec}}
    )
    nlp.initialize(lambda: annotated_examples(nlp))
    return nlp


def test_private_layers_are_copied_where_they_are_equal(teacher: Language) -> None:
    source, student = private_tagger(), private_tagger()
    source_tagger: Any = source.get_pipe("tagger")
    source_tagger.model.get_ref("output_layer").get_param("W")[:] = np.eye(7, 16)
    pairs = {"tagger": "tagger"}
    assert copy_heads(student, source, pairs) == {"tagger": "copied"}
    own, expected = (
        scores_of(nlp, "tagger", [nlp.make_doc(TEXTS[0])]) for nlp in (student, source)
    )
    np.testing.assert_array_equal(own, expected)
    assert np.ptp(own, axis=0).max() > 0.1
    found = [
        copy_heads(nlp, source, pairs)["tagger"]
        for nlp in (private_tagger(embed_size=60), private_tagger(depth=2))
    ]
    assert found[0].startswith("other shapes of 'hashembed': {'E': (50, 16)} and {'E': (60, 16)}")
    assert found[1].startswith("other layers: ")
    assert copy_heads(source, teacher, pairs)["tagger"].startswith("other layers: softmax and ")


def test_heads_that_do_not_fit_stay_as_they_were(
    teacher: Language, tmp_path: Path, bert_dir: Path
) -> None:
    narrow = write_encoder(tmp_path / "narrow", "bert", width=16)
    pipes = {
        "tagger": "tagger",
        "morphologizer": "morphologizer",
        "ner": "distil_ner",
        "parser": "parser",
    }
    config = save_labels(
        teacher, student_config(narrow, pipes), tmp_path, {name: name for name in pipes}
    )
    model = config["components"]["parser"]["model"]
    model["hidden_width"] = 8
    student = initialized(config)
    before = {name: student.get_pipe(name).model.to_bytes() for name in pipes}
    tagger: Any = student.get_pipe("tagger")
    found = copy_heads(student, teacher, {name: name for name in pipes})
    assert found == {
        "tagger": "another width: 32 and 16",
        "morphologizer": "another width: 32 and 16",
        "ner": "another kind of pipe: EntityRecognizer and DistilNER",
        "parser": "another width: 16 and 8",
    }
    tagger.cfg["labels"].reverse()
    assert copy_heads(student, teacher, {"tagger": "tagger"}) == {
        "tagger": "the same labels in another order"
    }
    tagger.cfg["labels"][0] = "other"
    assert copy_heads(student, teacher, {"tagger": "tagger"}) == {"tagger": "other labels"}
    assert before == {name: student.get_pipe(name).model.to_bytes() for name in pipes}


def test_stock_listeners_do_not_stand_in_the_way(
    teacher: Language, bert_dir: Path, tmp_path: Path
) -> None:
    config = save_labels(teacher, student_config(bert_dir, PIPES), tmp_path, SAME)
    for name in PIPES:
        listener = config["components"][name]["model"]["tok2vec"]
        assert listener["@architectures"] == LISTENER["@architectures"]
        config["components"][name]["model"]["tok2vec"] = {
            "@architectures": "spacy.Tok2VecListener.v1",
            "width": 32,
            "upstream": "*",
        }
    student = initialized(config)
    copied = copy_heads(student, teacher, SAME)
    assert copied == dict.fromkeys(PIPES, "copied")


def test_heads_of_spacy_transformers_are_copied(bert_dir: Path, tmp_path: Path) -> None:
    pytest.importorskip("spacy_transformers")
    teacher = spacy.blank("en")
    model = {
        "@architectures": "spacy-transformers.TransformerModel.v3",
        "name": str(bert_dir),
        "get_spans": {"@span_getters": "spacy-transformers.doc_spans.v1"},
        "tokenizer_config": {"use_fast": True},
    }
    listener = {
        "@architectures": "spacy-transformers.TransformerListener.v1",
        "pooling": {"@layers": "reduce_mean.v1"},
    }
    teacher.add_pipe("transformer", config={"model": model})
    pipes = ("tagger", "parser", "ner", "textcat")
    for name in pipes:
        settings = pipe_config(name)
        settings["model"]["tok2vec"] = listener
        teacher.add_pipe(name, config=settings)
    teacher.initialize(lambda: annotated_examples(teacher))
    config = save_labels(
        teacher, student_config(bert_dir, pipes), tmp_path, {name: name for name in pipes}
    )
    assert "the teacher has no components" in (find_obstacle(teacher, config) or "")
    student = initialized(config)
    copied = copy_heads(student, teacher, {name: name for name in pipes})
    assert copied == dict.fromkeys(pipes, "copied")
    for name in pipes:
        ours, theirs = (
            {
                (node.name, parameter): node.get_param(parameter)
                for node in nlp.get_pipe(name).model.walk()
                for parameter in node.param_names
            }
            for nlp in (student, teacher)
        )
        assert ours.keys() == theirs.keys()
        for key, value in ours.items():
            np.testing.assert_array_equal(value, theirs[key])
