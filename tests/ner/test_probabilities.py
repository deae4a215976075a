"""Settings and methods of `distil_ner` that tell how probable entities are."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import spacy
from spacy.cli.find_threshold import find_threshold
from spacy.tokens import Doc, DocBin, Span
from spacy.util import fix_random_seed, registry
from thinc.api import Model

from spacy_distil.errors import ConfigError
from spacy_distil.ner.schemes import SCHEMES, n_tags, tag_names
from tests.ner.test_marginals import CLOSE, by_brute_force
from tests.ner.test_pipe import MODEL
from tests.util import make_examples

NAME = "probability"


@pytest.fixture(autouse=True)
def extensions() -> Any:
    before = Span.has_extension(NAME)
    yield
    if not before and Span.has_extension(NAME):
        Span.remove_extension(NAME)


def make(**settings: Any) -> Any:
    nlp = spacy.blank("en")
    nlp.add_pipe("distil_ner", name="ner", config={"model": MODEL, **settings})
    return nlp


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline that has learned little, so it is not sure."""
    fix_random_seed(0)
    nlp = make()
    examples = make_examples(nlp, 32)
    optimizer = nlp.initialize(lambda: examples)
    optimizer.learn_rate = 0.02
    for _ in range(4):
        nlp.update(examples, sgd=optimizer)
    path = tmp_path_factory.mktemp("little")
    nlp.to_disk(path)
    return path


def load(directory: Path, **settings: Any) -> Any:
    return spacy.load(directory, config={"components": {"ner": settings}})


TEXTS = ["Ann visited Rome in spring .", "", "We like unbelievable pizza in Oslo", "   "]


def test_probabilities_are_kept_with_the_entities(directory: Path) -> None:
    nlp = load(directory, spans_key="sure", extension=NAME)
    for doc in [*nlp.pipe(TEXTS), nlp(TEXTS[0])]:
        group = doc.spans["sure"]
        assert [*group] == [*doc.ents]
        scores = group.attrs["scores"]
        np.testing.assert_allclose(scores, [ent._.get(NAME) for ent in doc.ents], rtol=1e-6)
        (own,) = nlp.get_pipe("ner").probabilities([doc])
        np.testing.assert_allclose(own, scores, rtol=1e-6)
        # Everything survives where docs go.
        stored = DocBin(docs=[doc], store_user_data=True).to_bytes()
        copies = [
            Doc(nlp.vocab).from_bytes(doc.to_bytes()),
            next(DocBin().from_bytes(stored).get_docs(nlp.vocab)),
            pickle.loads(pickle.dumps(doc)),
            doc.copy(),
        ]
        for copy in copies:
            assert [*copy.spans["sure"].attrs["scores"]] == [*scores]
            assert [ent._.get(NAME) for ent in copy.ents] == [ent._.get(NAME) for ent in doc.ents]
    doc = nlp(TEXTS[0])
    part = doc[1:].as_doc(copy_user_data=True)
    assert [ent._.get(NAME) for ent in part.ents] == [
        ent._.get(NAME) for ent in doc.ents if ent.start
    ]


def test_nothing_is_computed_unless_it_is_asked_for(directory: Path) -> None:
    nlp = load(directory)
    (predicted,) = nlp.get_pipe("ner").predict([nlp.make_doc(TEXTS[0])])
    assert predicted.probabilities is None
    doc = nlp(TEXTS[0])
    assert not doc.spans
    assert not doc.user_data
    sure = load(directory, spans_key="sure")(TEXTS[0])
    assert [*map(str, sure.ents)] == [*map(str, doc.ents)]


def test_a_threshold_leaves_unsure_entities_out(directory: Path, tmp_path: Path) -> None:
    docs = [*load(directory, spans_key="sure").pipe(TEXTS)]
    scores = np.concatenate([doc.spans["sure"].attrs["scores"] for doc in docs])
    middle = len(scores) // 2
    threshold = float(np.sort(scores)[middle - 1 : middle + 1].mean())
    nlp = load(directory, spans_key="sure")
    nlp.get_pipe("ner").cfg["threshold"] = threshold
    nlp.to_disk(tmp_path)
    for doc, whole in zip(spacy.load(tmp_path).pipe(TEXTS), docs, strict=True):
        kept = whole.spans["sure"].attrs["scores"] >= threshold
        assert [*map(str, doc.ents)] == [
            str(ent) for ent, is_kept in zip(whole.ents, kept, strict=True) if is_kept
        ]
        assert [*doc.spans["sure"]] == [*doc.ents]
        assert all(token.ent_iob_ for token in doc)  # the others are O, not unknown
    assert 0 < (scores >= threshold).sum() < len(scores)


def test_find_threshold_of_spacy(directory: Path, tmp_path: Path) -> None:
    nlp = spacy.blank("en")
    docs = [example.reference for example in make_examples(nlp, 8)]
    DocBin(docs=docs).to_disk(tmp_path / "dev.spacy")
    best, score, scores = find_threshold(
        str(directory),
        tmp_path / "dev.spacy",
        "ner",
        "threshold",
        "ents_p",
        n_trials=5,
        silent=True,
    )
    assert scores[0.0] <= score == max(scores.values())
    assert best in scores


def scripted(scheme: str, scores: np.ndarray, words: list[str], **settings: Any) -> tuple[Any, Doc]:
    """A pipe whose model returns these logits for the words, and the processed doc."""

    def forward(model: Any, docs: list[Doc], is_train: bool) -> Any:
        return [scores.astype("f") for _ in docs], lambda d: []

    name = "tests.scripted.v1"
    registry.architectures.register(name, func=lambda: Model("scripted", forward))
    nlp = spacy.blank("en")
    config = {"model": {"@architectures": name}, "scheme": scheme, **settings}
    ner: Any = nlp.add_pipe("distil_ner", name="ner", config=config)
    ner.cfg["labels"] = ["A", "B"]
    return ner, ner(Doc(nlp.vocab, words=words))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_candidates_and_readings_against_brute_force(scheme: Any) -> None:
    """With whitespace in between, and a start of a sentence."""
    rng = np.random.default_rng(SCHEMES.index(scheme))
    words = ["Ann", " ", "saw", "New", "York", "\n"]
    scores = rng.normal(0, 2, (6, n_tags(2, scheme)))
    ner, doc = scripted(scheme, scores, words)
    is_space = np.array([word.isspace() for word in words])
    kept = np.arange(6) if scheme == "BILUO" else np.flatnonzero(~is_space)
    cuts = np.zeros(len(kept) + 1, dtype=bool)
    cuts[[0, -1]] = True
    readings = by_brute_force(
        {
            "scheme": scheme,
            "scores": scores[kept],
            "cuts": cuts,
            "fixed": np.zeros(len(kept), bool),
            "is_space": is_space[kept],
        }
    )

    def in_doc(entity: Any) -> tuple[int, int, str]:
        start, end, label = entity
        return int(kept[start]), int(kept[end - 1]) + 1, "AB"[label]

    def key(span: Span) -> tuple[int, int, str]:
        return span.start, span.end, span.label_

    expected: dict[Any, float] = {}
    for reading, probability in readings.items():
        for entity in reading:
            expected[in_doc(entity)] = expected.get(in_doc(entity), 0.0) + probability
    (candidates,) = ner.find_candidates([doc], 0.05)
    found = {key(each.span): each.probability for each in candidates}
    assert found == pytest.approx({k: p for k, p in expected.items() if p >= 0.05}, abs=CLOSE)
    for each in candidates:
        begins = sum(p for (i, _, k), p in expected.items() if (i, k) == key(each.span)[::2])
        ends = sum(p for (_, j, k), p in expected.items() if (j, k) == key(each.span)[1:])
        assert (each.start, each.end) == pytest.approx((begins, ends), abs=CLOSE)
    (own,) = ner.probabilities([doc])
    assert own == pytest.approx([expected[key(ent)] for ent in doc.ents], abs=CLOSE)
    (best,) = ner.n_best([doc], 4)
    ranked = sorted(readings.items(), key=lambda item: -item[1])[:4]
    assert [each.probability for each in best] == pytest.approx([p for _, p in ranked], abs=CLOSE)
    assert [{*map(key, each.ents)} for each in best] == [{*map(in_doc, r)} for r, _ in ranked]
    assert [key(ent) for ent in best[0].ents] == [key(ent) for ent in doc.ents]
    (tags,) = ner.tag_probabilities([doc])
    assert tags.shape == (6, 9)
    np.testing.assert_array_equal(np.isnan(tags).all(axis=1), is_space & (scheme != "BILUO"))
    np.testing.assert_allclose(tags[kept].sum(axis=1), 1, atol=1e-9)
    for t in kept:
        outside = 1 - sum(p for (i, j, _), p in expected.items() if i <= t < j)
        assert tags[t, 0] == pytest.approx(outside, abs=CLOSE)


def test_entities_of_others(directory: Path) -> None:
    """They are not in the group, have a probability, and none if the pipe cannot predict them."""
    nlp = load(directory, spans_key="sure")
    ruler = nlp.add_pipe("entity_ruler", before="ner")
    ruler.add_patterns([{"label": "PER", "pattern": "Ann"}, {"label": "TIME", "pattern": "spring"}])
    doc = nlp("Ann visited Rome in spring .")
    assert {"Ann", "spring"} <= {ent.text for ent in doc.ents}
    assert not {"Ann", "spring"} & {ent.text for ent in doc.spans["sure"]}
    ner = nlp.get_pipe("ner")
    (own,) = ner.probabilities([doc])
    by_text = dict(zip(map(str, doc.ents), own, strict=True))
    assert by_text["spring"] == 0
    assert 0 < by_text["Ann"] < 1
    doc.set_ents([Span(doc, 0, 1, "LOC")])
    assert 0 < ner.probabilities([doc])[0][0] < 1
    doc = nlp.make_doc("Ann \n Rome")
    doc.set_ents([Span(doc, 0, 2, "PER")])  # ends on whitespace
    assert ner.probabilities([doc])[0].tolist() == [0]


def test_no_docs_no_tokens_no_labels(directory: Path) -> None:
    ner = load(directory).get_pipe("ner")
    empty = Doc(ner.vocab)
    for docs in ([], [empty], [empty, empty]):
        assert [each.tolist() for each in ner.probabilities(docs)] == [[] for _ in docs]
        assert ner.find_candidates(docs) == [[] for _ in docs]
        assert ner.n_best(docs) == [[(1.0, ())] for _ in docs]
        assert [each.shape for each in ner.tag_probabilities(docs)] == [(0, 9) for _ in docs]
    nlp = make(spans_key="sure")
    nlp.initialize()
    doc = nlp("Ann visited Rome")
    assert [*doc.spans["sure"]] == []
    assert nlp.get_pipe("ner").find_candidates([doc]) == [[]]
    assert nlp.get_pipe("ner").n_best([doc]) == [[(pytest.approx(1.0), ())]]


def test_a_group_of_several_pipes(directory: Path) -> None:
    """It has the entities of all, and the ones of before as long as they stay."""
    one, two = (load(directory, spans_key="sure", extension=NAME) for _ in range(2))
    doc = one(TEXTS[0])
    scores = doc.spans["sure"].attrs["scores"].tolist()
    assert len(scores) == len(doc.ents) > 1
    again = two(doc)
    assert again.spans["sure"].attrs["scores"].tolist() == scores
    assert [*again.spans["sure"]] == [*again.ents]
    assert None not in [ent._.get(NAME) for ent in again.ents]
    gone = doc.ents[0]
    doc.set_ents([*doc.ents[1:]], blocked=[gone])
    two(doc)
    assert gone not in [*doc.spans["sure"]]
    assert gone._.get(NAME) is None
    assert one("").spans["sure"].attrs["scores"].tolist() == []


def test_a_text_of_entities(directory: Path) -> None:
    """Boundaries are certain, so the search for readings stays short."""
    words = ["New", "York", "City", "and"] * 300
    scores = np.full((1200, 9), -20.0)
    scores[np.arange(1200), [1, 2, 3, 0] * 300] = 0
    scores[::7, 4] = -2
    ner, doc = scripted("BILUO", scores, words)
    assert len(doc.ents) == 300
    ((first, second, *_),) = ner.n_best([doc], 3)
    assert [*first.ents] == [*doc.ents]
    assert first.probability >= second.probability > 0


def test_a_long_doc(directory: Path) -> None:
    nlp = load(directory, spans_key="sure", extension=NAME)
    doc = nlp("Ann visited Rome in spring . " * 2_000)
    scores = doc.spans["sure"].attrs["scores"]
    assert len(scores) == len(doc.ents) > 2_000
    assert ((scores > 0) & (scores <= 1 + 1e-6)).all()


def test_temperature_and_normalized_outputs(directory: Path) -> None:
    """A temperature of the softmax changes probabilities, not entities."""
    nlp = load(directory, spans_key="sure")
    doc = nlp(TEXTS[0])
    output = nlp.get_pipe("ner").model.get_ref("output_layer")
    output.attrs["softmax_temperature"] = 3.0
    softer = nlp(TEXTS[0])
    assert [*map(str, softer.ents)] == [*map(str, doc.ents)]
    assert not np.allclose(softer.spans["sure"].attrs["scores"], doc.spans["sure"].attrs["scores"])
    output.attrs["softmax_temperature"] = 1.0
    output.attrs["softmax_normalize"] = True
    same = nlp(TEXTS[0])
    np.testing.assert_allclose(
        same.spans["sure"].attrs["scores"], doc.spans["sure"].attrs["scores"], rtol=1e-4
    )


@pytest.mark.parametrize("threshold", [-0.1, 1.5, float("nan")])
def test_impossible_thresholds(threshold: float, directory: Path) -> None:
    if not np.isnan(threshold):  # spaCy's configs take no NaN
        with pytest.raises(ConfigError, match=f"threshold = {threshold} of 'ner': expected"):
            make(threshold=threshold)
    nlp = load(directory)
    nlp.get_pipe("ner").cfg["threshold"] = threshold
    with pytest.raises(ConfigError, match="expected a number from 0 to 1"):
        nlp(TEXTS[0])
    with pytest.raises(ConfigError, match=f"threshold = {threshold}: expected a number above 0"):
        nlp.get_pipe("ner").find_candidates([nlp.make_doc("Ann")], threshold)


def test_impossible_settings(directory: Path) -> None:
    Span.set_extension(NAME, getter=lambda span: 0, force=True)
    with pytest.raises(ConfigError, match=f"extension = '{NAME}' of 'ner': span._.{NAME} is a"):
        make(extension=NAME)
    for setting in ("extension", "spans_key"):
        with pytest.raises(ConfigError, match=f"{setting} = '' of 'ner': expected a name"):
            make(**{setting: ""})
    with pytest.raises(ConfigError, match="n = 0: expected at least 1"):
        load(directory).get_pipe("ner").n_best([], 0)


def test_a_pipeline_of_before(directory: Path, tmp_path: Path) -> None:
    """Its files know no threshold."""
    nlp = load(directory)
    nlp.to_disk(tmp_path)
    path = tmp_path / "ner" / "cfg"
    cfg = json.loads(path.read_text())
    assert cfg.pop("threshold") == 0
    assert tag_names(cfg["labels"])
    nlp.get_pipe("ner").cfg.pop("threshold")
    nlp.get_pipe("ner").from_bytes(load(directory).get_pipe("ner").to_bytes())
    assert nlp.get_pipe("ner").cfg["threshold"] == 0
