"""`distil_ner` against spaCy's `ner`: the same annotations, data and habits."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import spacy
from spacy.tokens import Doc, Span
from spacy.training import Example

from spacy_distil.errors import ConfigError, DistilError, WeightsError
from spacy_distil.ner.decoding import MISSING
from spacy_distil.ner.pipe import DistilNER
from spacy_distil.ner.schemes import tag_names
from tests.kills import run_and_kill
from tests.util import LISTENER, add_heads, make_examples, make_nlp, weights_of

MODEL = {
    "@architectures": "spacy.Tagger.v2",
    "tok2vec": {
        "@architectures": "spacy.HashEmbedCNN.v2",
        "pretrained_vectors": None,
        "width": 16,
        "depth": 1,
        "embed_size": 200,
        "window_size": 1,
        "maxout_pieces": 2,
        "subword_features": True,
    },
}
TEXT = "Ann visited Rome in spring ."


def blank(labels: tuple[str, ...] = ()) -> Any:
    nlp = spacy.blank("en")
    ner: Any = nlp.add_pipe("distil_ner", name="ner", config={"model": MODEL})
    for label in labels:
        ner.add_label(label)
    return nlp


def train(nlp: Any, examples: list[Example], steps: int = 40) -> dict[str, float]:
    optimizer = nlp.initialize(lambda: examples)
    optimizer.learn_rate = 0.02
    losses: dict[str, float] = {}
    for _ in range(steps):
        losses = nlp.update(examples, sgd=optimizer)
    return losses


@pytest.fixture(scope="module")
def trained() -> Any:
    nlp = blank()
    train(nlp, make_examples(nlp, 32))
    return nlp


def entities(doc: Doc) -> list[tuple[str, str]]:
    return [(ent.text, ent.label_) for ent in doc.ents]


def scripted(words: Sequence[str], preferred: str) -> tuple[Any, Doc]:
    """A pipe whose model, word by word, prefers these tags; O comes second."""
    nlp = blank(("X",))
    names, tags = tag_names(("X",)), preferred.split()
    doc = Doc(nlp.vocab, words=list(words))
    nlp.initialize()
    ner = nlp.get_pipe("ner")
    scores = np.zeros((len(words), len(names)), dtype="f")
    scores[:, 0] = 1
    scores[np.arange(len(words)), [names.index(tag) for tag in tags]] = 2
    # The output layer copies the token vectors, which are the scores.
    output = ner.model.get_ref("output_layer")
    width = output.get_dim("nI")
    assert len(names) <= width
    output.set_param("W", np.eye(len(names), width, dtype="f"))
    padded = np.zeros((len(words), width), dtype="f")
    padded[:, : len(names)] = scores

    def forward(model: Any, docs: list[Doc], is_train: bool) -> Any:
        return [padded[: len(each)] for each in docs], lambda d_vectors: []

    ner.model.get_ref("tok2vec")._func = forward
    return ner, doc


# Learning


def test_it_learns(trained: Any) -> None:
    assert trained.evaluate(make_examples(trained, 32))["ents_f"] == 1.0
    assert entities(trained(TEXT)) == [("Ann", "PER"), ("Rome", "LOC")]
    assert [token.ent_iob_ for token in trained(TEXT)] == ["B", "O", "B", "O", "O", "O"]


def test_entities_of_several_tokens() -> None:
    nlp = blank()
    words = ["she", "likes", "New", "York", "City", "and", "San", "Marino"]
    tags = ["O", "O", "B-LOC", "I-LOC", "L-LOC", "O", "B-LOC", "L-LOC"]
    examples = [Example.from_dict(Doc(nlp.vocab, words=words), {"entities": tags})]
    train(nlp, examples)
    doc = nlp(Doc(nlp.vocab, words=words))
    assert entities(doc) == [("New York City", "LOC"), ("San Marino", "LOC")]


def test_loss_and_gradient_are_those_of_the_cross_entropy() -> None:
    """Against finite differences of a loss written out in float64."""
    nlp = blank(("LOC", "PER"))
    words = ["Ann", "flew", "to", "Rome"]
    partial = Doc(nlp.vocab, words=words)
    partial.set_ents([Span(partial, 0, 1, "PER")], missing=[partial[1:3]])
    examples = [
        Example(Doc(nlp.vocab, words=words), partial),
        Example(Doc(nlp.vocab, words=words[:2]), Doc(nlp.vocab, words=words[:2])),
    ]
    names = tag_names(("LOC", "PER"))
    gold = [names.index("U-PER"), MISSING, MISSING, 0, MISSING, MISSING]
    logits = np.random.default_rng(0).normal(0, 2, (6, len(names)))

    def loss_of(values: np.ndarray) -> float:
        total = 0.0
        for row, tag in zip(values, gold, strict=True):
            if tag != MISSING:
                total += np.log(np.exp(row).sum()) - row[tag]
        return total

    probs = (np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)).astype("f")
    loss, gradients = nlp.get_pipe("ner").get_loss(examples, [probs[:4], probs[4:]])
    assert [len(each) for each in gradients] == [4, 2]
    assert loss == pytest.approx(loss_of(logits), rel=1e-5)
    expected = np.zeros_like(logits)
    for i in np.ndindex(logits.shape):
        step = np.zeros_like(logits)
        step[i] = 1e-5
        expected[i] = (loss_of(logits + step) - loss_of(logits - step)) / 2e-5
    assert np.allclose(np.concatenate(gradients), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("spacy_words", "gold_words", "tags", "expected"),
    [
        (["a", "b"], ["a", "b"], ["U-X", "O"], ["U-X", "O"]),
        (["a", "b"], ["a", "b"], ["-", "O"], [None, "O"]),
        (["a", "b"], ["a", "b"], None, [None, None]),
        # The gold entity is half a token: it has no tag.
        (["ab", "c"], ["a", "b", "c"], ["U-X", "O", "O"], [None, "O"]),
        (["a", "b", "c"], ["ab", "c"], ["U-X", "O"], ["B-X", "L-X", "O"]),
    ],
)
def test_what_is_missing_or_misaligned_trains_nothing(
    spacy_words: list[str],
    gold_words: list[str],
    tags: list[str] | None,
    expected: list[str | None],
) -> None:
    nlp = blank(("X",))
    nlp.initialize()
    gold = Doc(nlp.vocab, words=gold_words, spaces=[False] * len(gold_words))
    if tags is not None:
        annotated = Example.from_dict(gold, {"entities": tags}).reference
        gold = annotated
    predicted = Doc(nlp.vocab, words=spacy_words, spaces=[False] * len(spacy_words))
    example = Example(predicted, gold)
    names = tag_names(("X",))
    probs = np.full((len(spacy_words), 5), 0.2, dtype="f")
    _, (gradient,) = nlp.get_pipe("ner").get_loss([example], [probs])
    for row, tag in zip(gradient, expected, strict=True):
        wanted = np.zeros(5)
        if tag is not None:
            wanted[:] = 0.2
            wanted[names.index(tag)] -= 1
        assert np.allclose(row, wanted)


SPACED = ["We", "saw", "\n", "New", " ", "York", "\n\n", "and", "Rome", " "]
SPACED_TAGS = ["O", "O", "B-X", "I-X", "I-X", "I-X", "L-X", "U-Y", "B-X", "L-X"]
TRIMMED_TAGS = ["O", "O", "O", "B-X", "I-X", "L-X", "O", "U-Y", "U-X", "O"]


def spaced_examples(nlp: Any, tags: Sequence[str], words: Sequence[str] = SPACED) -> list[Example]:
    doc = Doc(nlp.vocab, words=list(words), spaces=[False] * len(words))
    return [Example.from_dict(doc, {"entities": list(tags)})]


def test_whitespace_at_the_ends_of_entities_is_not_learned() -> None:
    """The gradient is that of the entities without it. The decoder can never say it."""
    nlp = blank(("X", "Y"))
    nlp.initialize()
    ner, n_tags = nlp.get_pipe("ner"), len(tag_names(("X", "Y")))
    probs = np.full((len(SPACED), n_tags), 1 / n_tags, dtype="f")
    with pytest.warns(UserWarning, match="2 entities in 1 docs for 'ner' begin or end with white"):
        _, (found,) = ner.get_loss(spaced_examples(nlp, SPACED_TAGS), [probs])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, (expected,) = ner.get_loss(spaced_examples(nlp, TRIMMED_TAGS), [probs])
        ner.get_loss(spaced_examples(nlp, SPACED_TAGS), [probs])  # it has warned
    np.testing.assert_array_equal(found, expected)


def test_an_entity_of_whitespace_alone_is_none() -> None:
    nlp = blank(("X",))
    nlp.initialize()
    words, probs = ["a", " ", "\n", "b"], np.full((4, 5), 0.2, dtype="f")
    with pytest.warns(UserWarning, match="2 entities"):
        _, (found,) = nlp.get_pipe("ner").get_loss(
            spaced_examples(nlp, ["O", "U-X", "U-X", "O"], words), [probs]
        )
    _, (expected,) = nlp.get_pipe("ner").get_loss(spaced_examples(nlp, ["O"] * 4, words), [probs])
    np.testing.assert_array_equal(found, expected)


def test_a_corpus_with_whitespace_in_its_entities_is_learned_as_one_without() -> None:
    """Initialization counts such entities of all docs."""
    learned = []
    for tags in (SPACED_TAGS, TRIMMED_TAGS):
        nlp = blank()
        spacy.util.fix_random_seed(0)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            examples = [each for _ in range(3) for each in spaced_examples(nlp, tags)]
            train(nlp, examples)
        about = [str(each.message) for each in caught if "whitespace" in str(each.message)]
        assert [each[:22] for each in about] == ["6 entities in 3 docs f"] * (tags is SPACED_TAGS)
        learned.append(nlp)
    spaced, trimmed = learned
    assert spaced.get_pipe("ner").model.to_bytes() == trimmed.get_pipe("ner").model.to_bytes()
    doc = spaced(spaced_examples(spaced, TRIMMED_TAGS)[0].predicted)
    assert entities(doc) == [("New York", "X"), ("and", "Y"), ("Rome", "X")]


def test_docs_without_annotation_leave_the_model_alone(bert_dir: Path) -> None:
    """Neither the head nor the encoder learns from them."""
    nlp = make_nlp(bert_dir)
    nlp.add_pipe(
        "distil_ner",
        config={"model": {"@architectures": "spacy.Tagger.v2", "tok2vec": LISTENER}},
    )
    optimizer = nlp.initialize(lambda: make_examples(nlp))
    head = nlp.get_pipe("distil_ner").model.get_ref("output_layer")
    before, encoder = head.get_param("W").copy(), weights_of(nlp)
    losses = nlp.update(make_examples(nlp, drop=["entities"]), sgd=optimizer)
    assert losses["distil_ner"] == 0
    assert np.array_equal(head.get_param("W"), before)
    assert all(np.array_equal(encoder[name], value) for name, value in weights_of(nlp).items())


def test_it_trains_the_encoder_beside_other_heads(bert_dir: Path) -> None:
    nlp = make_nlp(bert_dir, initialize=False)
    add_heads(nlp, ["tagger"])
    nlp.add_pipe(
        "distil_ner",
        name="ner",
        config={"model": {"@architectures": "spacy.Tagger.v2", "tok2vec": LISTENER}},
    )
    examples = make_examples(nlp, 32)
    optimizer = nlp.initialize(lambda: examples)
    before = weights_of(nlp)
    optimizer.learn_rate = 5e-3
    first = nlp.update(examples, sgd=optimizer, drop=0.1)["ner"]
    for _ in range(30):
        last = nlp.update(examples, sgd=optimizer, drop=0.1)["ner"]
    assert last < first / 5
    assert any(not np.array_equal(before[name], value) for name, value in weights_of(nlp).items())
    assert nlp.evaluate(examples)["ents_f"] > 0.9


def test_a_frozen_head_stays_as_it_is(bert_dir: Path) -> None:
    nlp = make_nlp(bert_dir)
    nlp.add_pipe(
        "distil_ner",
        name="ner",
        config={"model": {"@architectures": "spacy.Tagger.v2", "tok2vec": LISTENER}},
    )
    optimizer = nlp.initialize(lambda: make_examples(nlp))
    head = nlp.get_pipe("ner").model.get_ref("output_layer")
    before = head.get_param("W").copy()
    with nlp.select_pipes(disable="ner"):
        nlp.update(make_examples(nlp), sgd=optimizer, annotates=["transformer"])
    assert np.array_equal(head.get_param("W"), before)


# Behind a tok2vec of spaCy's


@pytest.fixture(scope="module")
def behind_a_cnn() -> Any:
    nlp: Any = spacy.blank("en")
    nlp.add_pipe("tok2vec", config={"model": MODEL["tok2vec"]})
    listener = {"@architectures": "spacy.Tok2VecListener.v1", "width": 16}
    nlp.add_pipe("distil_ner", name="ner", config={"model": {**MODEL, "tok2vec": listener}})
    train(nlp, make_examples(nlp, 32))
    return nlp


def test_it_does_not_predict_without_its_tok2vec(behind_a_cnn: Any, tmp_path: Path) -> None:
    """spaCy's listener would return zeros."""
    nlp = behind_a_cnn
    assert entities(nlp(TEXT)) == [("Ann", "PER"), ("Rome", "LOC")]
    nlp.to_disk(tmp_path)
    for alone in (spacy.load(tmp_path, exclude=["tok2vec"]), spacy.load(tmp_path, enable=["ner"])):
        with pytest.raises(ConfigError, match=r"Without its encoder, 'ner' .* listens to '\*' for"):
            alone(TEXT)
        assert alone("").ents == ()
    doc = Doc(nlp.vocab).from_bytes(nlp.get_pipe("tok2vec")(nlp.make_doc(TEXT)).to_bytes())
    assert entities(spacy.load(tmp_path, enable=["ner"])(doc)) == entities(nlp(TEXT))


def test_a_token_is_split_before_it(behind_a_cnn: Any) -> None:
    """spaCy leaves a row too many in doc.tensor."""
    nlp = behind_a_cnn
    tok2vec, ner = nlp.get_pipe("tok2vec"), nlp.get_pipe("ner")
    docs = [tok2vec(nlp.make_doc("AnnBob visited Rome.")), tok2vec(nlp.make_doc(TEXT))]
    with docs[0].retokenize() as retokenizer:
        retokenizer.split(docs[0][0], ["Ann", "Bob"], heads=[docs[0][1], docs[0][1]])
    assert len(docs[0].tensor) > len(docs[0])
    found = [entities(doc) for doc in ner.pipe(docs)]
    docs[0].tensor = docs[0].tensor[: len(docs[0])]
    for doc in docs:
        doc.set_ents([], default="missing")
    assert found == [entities(ner(doc)) for doc in docs]
    assert ("Rome", "LOC") in found[0]
    assert found[1] == [("Ann", "PER"), ("Rome", "LOC")]


# Labels


def test_labels_come_from_the_examples(trained: Any) -> None:
    reference: Any = spacy.blank("en")
    reference.add_pipe("ner")
    reference.initialize(lambda: make_examples(reference, 32))
    ner = trained.get_pipe("ner")
    assert ner.labels == reference.get_pipe("ner").labels == ("LOC", "PER")
    assert ner.label_data == ner.labels
    assert trained.pipe_labels["ner"] == ["LOC", "PER"]


def test_labels_can_be_given() -> None:
    nlp = blank()
    nlp.config["initialize"]["components"] = {"ner": {"labels": ["Z", "A"]}}
    nlp.initialize()
    assert nlp.get_pipe("ner").labels == ("Z", "A")
    assert nlp.get_pipe("ner").model.get_dim("nO") == 9
    with pytest.raises(ConfigError, match="must be a list of strings"):
        nlp.get_pipe("ner").initialize(lambda: make_examples(nlp), labels={"1": {"A": 1}})


def test_no_labels_are_no_error() -> None:
    nlp = blank()
    nlp.initialize()
    assert nlp.get_pipe("ner").labels == ()
    assert nlp(TEXT).ents == ()


def test_a_label_added_to_a_trained_pipe_changes_nothing_until_it_is_learned(trained: Any) -> None:
    nlp = blank().from_bytes(trained.to_bytes())
    ner = nlp.get_pipe("ner")
    before = [entities(nlp(example.text)) for example in make_examples(nlp, 8)]
    assert (ner.add_label("FOOD"), ner.add_label("FOOD")) == (1, 0)
    assert ner.labels == ("LOC", "PER", "FOOD")
    assert [entities(nlp(example.text)) for example in make_examples(nlp, 8)] == before
    example = Example.from_dict(nlp.make_doc("We like pizza"), {"entities": [(8, 13, "FOOD")]})
    optimizer = nlp.resume_training()
    optimizer.learn_rate = 0.02
    for _ in range(40):
        nlp.update([*make_examples(nlp, 8), example], sgd=optimizer)
    assert entities(nlp("We like pizza")) == [("pizza", "FOOD")]
    again = blank().from_bytes(nlp.to_bytes())
    assert entities(again("We like pizza")) == [("pizza", "FOOD")]


def test_update_adds_the_labels_that_it_meets(trained: Any) -> None:
    """As `ner` does."""
    nlp = blank().from_bytes(trained.to_bytes())
    example = Example.from_dict(nlp.make_doc("We like pizza"), {"entities": [(8, 13, "FOOD")]})
    optimizer = nlp.resume_training()
    assert nlp.update([example], sgd=optimizer)["ner"] > 0
    assert "FOOD" in nlp.get_pipe("ner").labels


def test_a_loss_of_unknown_labels_is_refused(trained: Any) -> None:
    example = Example.from_dict(trained.make_doc("We like pizza"), {"entities": [(8, 13, "FOOD")]})
    with pytest.raises(ConfigError, match=r"are \['LOC', 'PER'\], but .* have a tag 'U-FOOD'"):
        trained.get_pipe("ner").get_loss([example], [np.full((3, 9), 1 / 9, dtype="f")])


@pytest.mark.parametrize("label", ["", "!PER"])
def test_impossible_labels_are_refused(label: str) -> None:
    with pytest.raises(ConfigError, match="must not be empty nor start with '!'"):
        blank((label,))
    with pytest.raises(ValueError, match="E187"):
        blank((3,))  # type: ignore[arg-type]


def test_a_model_of_another_size_is_refused() -> None:
    nlp = spacy.blank("en")
    nlp.add_pipe("distil_ner", config={"model": {**MODEL, "nO": 7}})
    with pytest.raises(ConfigError, match="nO = 7, but needs 9 outputs"):
        nlp.initialize(lambda: make_examples(nlp))


# Annotations


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("O U-X O B-X L-X O", [(1, 2), (3, 5)]),
        ("I-X L-X O O B-X O", []),
        ("B-X I-X I-X I-X I-X L-X", [(0, 6)]),
        ("O L-X U-X I-X O B-X", [(2, 3)]),
    ],
)
def test_entities_are_valid_whatever_the_model_says(
    tags: str, expected: list[tuple[int, int]]
) -> None:
    ner, doc = scripted("abcdef", tags)
    assert [(ent.start, ent.end) for ent in ner(doc).ents] == expected
    assert doc.has_annotation("ENT_IOB")


def test_no_entity_begins_or_ends_on_whitespace() -> None:
    words = ["a", " \n ", "b", "c", "\t", "d"]
    ner, doc = scripted(words, "B-X L-X O B-X I-X L-X")
    assert [(ent.start, ent.end) for ent in ner(doc).ents] == [(3, 6)]
    ner, doc = scripted(words, "O U-X O O B-X L-X")
    assert [(ent.start, ent.end) for ent in ner(doc).ents] == []


def test_no_entity_crosses_a_sentence() -> None:
    ner, doc = scripted("abcd", "O B-X L-X O")
    assert [(ent.start, ent.end) for ent in ner(doc).ents] == [(1, 3)]
    ner, doc = scripted("abcd", "O B-X L-X O")
    doc[2].is_sent_start = True
    assert ner(doc).ents == ()


def test_entities_that_are_there_stay() -> None:
    ner, doc = scripted("abcdefgh", "U-X O B-X I-X L-X O U-X U-X")
    doc.set_ents(
        [Span(doc, 3, 4, "RULE", kb_id="Q1"), Span(doc, 5, 7, "RULE")],
        blocked=[doc[7:8]],
        default="missing",
    )
    ner(doc)
    found = [(ent.start, ent.end, ent.label_) for ent in doc.ents]
    assert found == [(0, 1, "X"), (3, 4, "RULE"), (5, 7, "RULE")]
    assert doc[3].ent_kb_id_ == "Q1"
    iobs = [token.ent_iob_ for token in doc]
    assert iobs == ["B", "O", "O", "B", "O", "B", "I", "B"]  # the last one is still blocked
    assert doc[7].ent_type_ == ""


@pytest.mark.parametrize("factory", ["ner", "distil_ner"])
def test_beside_an_entity_ruler(factory: str) -> None:
    """The ruler's entities, a label included that the model does not know, come through."""
    nlp = spacy.blank("en")
    ruler: Any = nlp.add_pipe("entity_ruler")
    nlp.add_pipe(factory)
    examples = make_examples(nlp, 32)
    optimizer = nlp.initialize(lambda: examples)
    optimizer.learn_rate = 0.02
    for _ in range(40):
        nlp.update(examples, sgd=optimizer)
    assert entities(nlp(TEXT)) == [("Ann", "PER"), ("Rome", "LOC")]
    season, rule = {"label": "SEASON", "pattern": "spring"}, {"label": "RULE", "pattern": "Ann"}
    ruler.add_patterns([season, rule])
    doc = nlp(TEXT)
    assert entities(doc) == [("Ann", "RULE"), ("Rome", "LOC"), ("spring", "SEASON")]


def test_batches_and_empty_docs(trained: Any) -> None:
    texts = ["", TEXT, "", "Bob visited Oslo in spring .", "   "]
    docs = list(trained.pipe(texts, batch_size=3))
    assert [entities(doc) for doc in docs] == [entities(trained(text)) for text in texts]
    assert entities(docs[3]) == [("Bob", "PER"), ("Oslo", "LOC")]
    (found,) = trained.get_pipe("ner").predict([trained.make_doc("")])
    assert len(found.entities) == 0
    empty = Example(trained.make_doc(""), trained.make_doc(""))
    assert trained.update([empty])["ner"] == 0


# Saving


def test_a_changed_file_is_named(trained: Any, tmp_path: Path) -> None:
    trained.to_disk(tmp_path)
    for name in ("model", "cfg"):
        path = tmp_path / "ner" / name
        whole = path.read_bytes()
        middle = len(whole) // 2
        path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
        with pytest.raises(WeightsError, match=f"{path} has changed since it was written"):
            spacy.load(tmp_path)
        path.write_bytes(whole)
    assert entities(spacy.load(tmp_path)(TEXT)) == entities(trained(TEXT))


def test_line_ends_of_git_are_no_damage(trained: Any, tmp_path: Path) -> None:
    trained.to_disk(tmp_path)
    path = tmp_path / "ner" / "cfg"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert entities(spacy.load(tmp_path)(TEXT)) == entities(trained(TEXT))


def test_a_kill_leaves_the_old_pipe_or_the_new_one(trained: Any, tmp_path: Path) -> None:
    """Killed before each of its file operations."""
    ner, old = trained.get_pipe("ner"), blank().get_pipe("ner")
    old.add_label("OLD")
    old.initialize(lambda: [Example.from_dict(blank().make_doc("a"), {"entities": []})])
    kill_at, was_killed, seen = 0, True, []
    while was_killed:
        kill_at += 1
        old.to_disk(tmp_path / "ner")
        was_killed = run_and_kill(lambda: ner.to_disk(tmp_path / "ner"), tmp_path, kill_at)
        seen.append(blank().get_pipe("ner").from_disk(tmp_path / "ner").labels)
    assert seen[0] == ("OLD",)
    assert seen[-1] == ner.labels
    assert set(seen) == {("OLD",), ner.labels}


@pytest.mark.parametrize("way", ["disk", "bytes", "pickle", "pipe"])
def test_it_is_saved_and_loaded(trained: Any, tmp_path: Path, way: str) -> None:
    if way == "disk":
        trained.to_disk(tmp_path)
        nlp = spacy.load(tmp_path)
    elif way == "bytes":
        nlp = blank().from_bytes(trained.to_bytes())
    elif way == "pickle":
        nlp = pickle.loads(pickle.dumps(trained))
    else:
        nlp = blank()
        nlp.get_pipe("ner").from_bytes(trained.get_pipe("ner").to_bytes())
    ner = nlp.get_pipe("ner")
    assert isinstance(ner, DistilNER)
    assert ner.labels == ("LOC", "PER")
    assert entities(nlp(TEXT)) == [("Ann", "PER"), ("Rome", "LOC")]


def test_meta_and_analysis_are_those_of_ner(trained: Any) -> None:
    reference = spacy.blank("en")
    reference.add_pipe("ner")
    ours, theirs = trained.get_pipe_meta("ner"), reference.get_pipe_meta("ner")
    assert ours.assigns == theirs.assigns
    assert ours.default_score_weights == theirs.default_score_weights
    assert trained.config["components"]["ner"]["scorer"] == {"@scorers": "spacy.ner_scorer.v1"}
    assert set(trained.evaluate(make_examples(trained))) >= {"ents_p", "ents_r", "ents_per_type"}


def test_rehearsal_is_refused_by_name(trained: Any) -> None:
    with pytest.raises(DistilError, match=r"'ner' is a 'distil_ner', which cannot rehearse"):
        trained.rehearse(make_examples(trained))
