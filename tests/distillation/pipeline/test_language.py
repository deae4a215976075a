"""A student tokenizes as its teacher does."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import spacy
from confection import Config
from spacy.lang.en import English
from spacy.language import Language
from spacy.tokens import Doc, DocBin
from spacy.training import Example
from spacy.util import compile_infix_regex, get_words_and_spaces
from thinc.api import fix_random_seed

import spacy_distil
from spacy_distil.distillation.pipeline.corpus import read_transfer_set
from spacy_distil.distillation.pipeline.fingerprints import fingerprint_pipeline
from spacy_distil.distillation.pipeline.heads import plan_heads
from spacy_distil.distillation.pipeline.language import (
    compare_tokenizers,
    keep_tokenizer,
    warn_of_rules,
    warn_of_unknown_languages,
)
from spacy_distil.distillation.pipeline.recorder import TeacherRecorder
from spacy_distil.encoding.pieces import PieceTokenizer
from spacy_distil.errors import ConfigError
from tests.distillation.pipeline.util import CNN, student_config
from tests.util import adam, encoder_of, make_nlp, registry, write_encoder

TEXT = "AcmeCorp sold a_b/c, but didn't say."
TOKENS = ["Acme", "Corp", "sold", "a", "_", "b", "/", "c", ",", "but", "did", "n't", "say", "."]
DEFAULT = ["AcmeCorp", "sold", "a_b", "/", "c", ",", "but", "did", "n't", "say", "."]
# In the corpora here, the tag of a token is its norm.
SENTENCES = [
    "They don't like it.",
    "We do not know.",
    "She'll come, and we will go.",
    "We have seen what you've seen.",
    "AcmeCorp didn't say that they'll sell a_b/c.",
]


def change_tokenizer(nlp: Language) -> None:
    """Give it special cases, a norm and infixes that no config has."""
    tokenizer: Any = nlp.tokenizer
    tokenizer.add_special_case("AcmeCorp", [{"ORTH": "Acme", "NORM": "acme!"}, {"ORTH": "Corp"}])
    infixes = [*nlp.Defaults.infixes, "[_/]"]
    tokenizer.infix_finditer = compile_infix_regex(infixes).finditer
    nlp.vocab["sold"].norm_ = "sell"


def train_cnn(nlp: Language, *, steps: int = 60) -> None:
    """Add a tagger on an encoder of its own, and teach it to tag tokens with their norms."""
    fix_random_seed(0)
    config: Any = {"model": {"@architectures": "spacy.Tagger.v2", "tok2vec": CNN}}
    nlp.add_pipe("tagger", config=config)
    examples = []
    for sentence in SENTENCES:
        doc = nlp.make_doc(sentence)
        tags = [token.norm_.upper() for token in doc]
        examples.append(Example.from_dict(doc, {"words": [t.text for t in doc], "tags": tags}))
    optimizer = adam(1e-2)
    nlp.initialize(lambda: examples)
    for _ in range(steps):
        nlp.update(examples, sgd=optimizer)


def tags(nlp: Language, text: str) -> list[tuple[str, str]]:
    return [(token.text, token.tag_) for token in nlp(text)]


@pytest.fixture(scope="module")
def teacher_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained CNN tagger with a tokenizer of its own."""
    nlp = spacy.blank("en")
    change_tokenizer(nlp)
    train_cnn(nlp)
    path = tmp_path_factory.mktemp("teacher")
    nlp.to_disk(path)
    return path


@pytest.fixture
def teacher(teacher_dir: Path) -> Language:
    return spacy.load(teacher_dir)


def cnn_student(directory: Path, teacher: Language, lang: str = "en") -> Config:
    """The config of a CNN tagger, and corpora that the teacher's tokenizer made."""
    docs = [teacher.make_doc(text) for text in SENTENCES]
    for doc in docs:
        for token in doc:
            token.tag_ = token.norm_.upper()
    for split in ("train", "dev"):
        DocBin(docs=docs).to_disk(directory / f"{split}.spacy")
    (directory / "text.jsonl").write_text(json.dumps({"text": TEXT}))
    nlp = spacy.blank(lang)
    model = {"@architectures": "spacy.Tagger.v2", "tok2vec": CNN}
    nlp.add_pipe("tagger", config={"model": model})
    config = student_config(directory, directory, ())
    config["nlp"], config["components"] = nlp.config["nlp"], nlp.config["components"]
    config["training"] |= {"max_steps": 2, "eval_frequency": 1, "score_weights": {"tag_acc": 1.0}}
    config["distillation"]["stages"] = {}
    return config


# The teacher alone, and as it is recorded


def test_a_cnn_teacher_is_recorded_as_it_predicts(teacher: Language) -> None:
    """A hash embedding reads norms, which the tokenizer sets: "n't" is "not" to it."""
    student = spacy.blank("en")
    change_tokenizer(student)
    model = {"@architectures": "spacy.Tagger.v2", "tok2vec": CNN}
    student.add_pipe("tagger", config={"model": model})
    pipe: Any = teacher.get_pipe("tagger")
    own: Any = student.get_pipe("tagger")
    own.initialize(lambda: [Example.from_dict(student.make_doc("a"), {})], labels=pipe.labels)

    def gold(nlp: Language) -> Iterator[Example]:
        for text in [*SENTENCES, TEXT]:
            yield Example(nlp.make_doc(text), nlp.make_doc(text))

    transfer_set = read_transfer_set(student, gold, None)
    plan = plan_heads(student, teacher, {})
    recorder = TeacherRecorder(teacher, transfer_set, plan.heads, None)
    records = recorder.record(range(len(transfer_set.all)))["tagger"]
    for number, text in enumerate([*SENTENCES, TEXT]):
        best = records["labels"][number][np.arange(len(records["labels"][number])), 0]
        found = [own.labels[label] for label in best]
        assert found == [tag for _, tag in tags(teacher, text)]
    # And it has learned what this is about.
    assert dict(tags(teacher, TEXT))["n't"] == "NOT"
    assert dict(tags(teacher, TEXT))["Acme"] == "ACME!"


# The student's tokenizer


def test_the_student_takes_the_tokenizer_and_the_norms(
    teacher: Language, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = cnn_student(tmp_path, teacher)
    distilled = spacy_distil.distil_pipeline(teacher, config, tmp_path / "out")
    student = spacy.load(distilled.path)
    assert [token.text for token in teacher(TEXT)] == TOKENS
    assert [token.text for token in student(TEXT)] == TOKENS
    assert [token.norm_ for token in student(TEXT)] == [token.norm_ for token in teacher(TEXT)]
    assert student.make_doc(TEXT)[0].norm_ == "acme!"
    assert student.make_doc(TEXT)[2].norm_ == "sell"
    output = " ".join(capsys.readouterr().out.split())
    assert "the tokenizer starts from the teacher's" in output
    assert "tokenizes otherwise" not in output


def test_a_student_of_its_own_tokenizer_is_told_the_difference(
    teacher: Language, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = cnn_student(tmp_path, teacher)
    config["distillation"]["student"]["tokenizer"] = "config"
    distilled = spacy_distil.distil_pipeline(teacher, config, tmp_path / "out")
    assert [token.text for token in spacy.load(distilled.path)(TEXT)] == DEFAULT
    output = " ".join(capsys.readouterr().out.split())
    assert "tokenizes otherwise than its teacher: of 56 tokens in 6 documents, 10 differ" in output
    assert "Acme (acme!) | Corp | did (do) (teacher), AcmeCorp | did (do) | n't (not)" in output


@pytest.mark.slow
def test_another_tokenizer_in_the_config_stays(teacher: Language, tmp_path: Path) -> None:
    @registry.tokenizers("tests.whitespace.v1")
    def make() -> Any:
        return lambda nlp: Whitespace(nlp.vocab)

    config = cnn_student(tmp_path, teacher)
    config["nlp"]["tokenizer"] = {"@tokenizers": "tests.whitespace.v1"}
    path = spacy_distil.distil_pipeline(teacher, config, tmp_path / "out").path
    assert [token.text for token in spacy.load(path)(TEXT)] == TEXT.split()
    config["distillation"]["student"]["tokenizer"] = "teacher"
    path = spacy_distil.distil_pipeline(teacher, config, tmp_path / "again").path
    assert [token.text for token in spacy.load(path)(TEXT)] == TOKENS


class Whitespace:
    """A tokenizer without state."""

    def __init__(self, vocab: Any) -> None:
        self.vocab = vocab

    def __call__(self, text: str) -> Doc:
        return Doc(self.vocab, words=text.split())

    def to_disk(self, path: Path, exclude: Any = ()) -> None:
        pass

    def from_disk(self, path: Path, exclude: Any = ()) -> None:
        pass


class Splitter(Whitespace):
    """A tokenizer that `initialize` reads from a file."""

    separator = " "

    def initialize(self, get_examples: Any, *, nlp: Any = None, path: str) -> None:
        self.separator = Path(path).read_text()

    def __call__(self, text: str) -> Doc:
        words = text.replace(self.separator, f" {self.separator} ").split()
        words, spaces = get_words_and_spaces(words, text)
        return Doc(self.vocab, words=words, spaces=spaces)

    def to_bytes(self, exclude: Any = ()) -> bytes:
        return self.separator.encode()

    def from_bytes(self, data: bytes, exclude: Any = ()) -> None:
        self.separator = data.decode()

    def to_disk(self, path: Path, exclude: Any = ()) -> None:
        path.write_text(self.separator)

    def from_disk(self, path: Path, exclude: Any = ()) -> None:
        self.separator = path.read_text()


@registry.tokenizers("tests.splitter.v1")
def make_splitter() -> Any:
    return lambda nlp: Splitter(nlp.vocab)


def test_a_tokenizer_that_was_initialized_from_a_file(tmp_path: Path) -> None:
    """The file may be gone: the student gets what the teacher's tokenizer has read."""
    file = tmp_path / "separator.txt"
    file.write_text("e")
    nlp = spacy.blank(
        "en",
        config={
            "nlp": {"tokenizer": {"@tokenizers": "tests.splitter.v1"}},
            "initialize": {"tokenizer": {"path": str(file)}},
        },
    )
    splitter: Any = nlp.tokenizer
    splitter.initialize(None, path=str(file))
    train_cnn(nlp, steps=2)
    file.unlink()
    expected = [token.text for token in nlp("hello there")]
    assert expected == ["h", "e", "llo", "th", "e", "r", "e"]
    config = cnn_student(tmp_path, nlp)
    path = spacy_distil.distil_pipeline(nlp, config, tmp_path / "out").path
    student = spacy.load(path)
    assert [token.text for token in student("hello there")] == expected
    assert student.config["initialize"]["tokenizer"] == {"path": str(file)}


def test_pipes_may_change_the_config_while_the_tokenizer_is_kept() -> None:
    splitter = {"@tokenizers": "tests.splitter.v1"}
    tokenizer = {"path": "missing.txt"}
    config = {"nlp": {"tokenizer": splitter}, "initialize": {"tokenizer": tokenizer}}
    nlp = spacy.blank("en", config=config)

    @Language.factory("tests_writer")
    class Writer:
        def __init__(self, nlp: Language, name: str) -> None:
            pass

        def initialize(self, get_examples: Any, *, nlp: Language) -> None:
            nlp.config["training"]["max_steps"] = 7

        def __call__(self, doc: Doc) -> Doc:
            return doc

    nlp.add_pipe("tests_writer")
    with keep_tokenizer(nlp):
        nlp.initialize()
    assert nlp.config["training"]["max_steps"] == 7
    assert nlp.config["initialize"]["tokenizer"] == tokenizer


@registry.tokenizers("tests.not_saved.v1")
def make_tokenizer_that_cannot_be_saved() -> Any:
    def make(nlp: Language) -> Any:
        tokenizer: Any = spacy.blank("en").tokenizer
        tokenizer = type(tokenizer)(nlp.vocab)
        tokenizer.infix_finditer = lambda text: re.finditer("-", text)
        return tokenizer

    return make


def test_a_tokenizer_that_cannot_be_saved_may_be_left_to_the_teacher(
    teacher: Language, tmp_path: Path
) -> None:
    config = cnn_student(tmp_path, teacher)
    config["distillation"]["student"]["tokenizer"] = "config"
    tokenizer: Any = teacher.tokenizer
    before = fingerprint_pipeline(teacher)
    tokenizer.infix_finditer = lambda text: re.finditer("-", text)
    assert fingerprint_pipeline(teacher) != before
    path = spacy_distil.distil_pipeline(teacher, config, tmp_path / "out").path
    assert [token.text for token in spacy.load(path)(TEXT)] == DEFAULT
    config["nlp"]["tokenizer"] = {"@tokenizers": "tests.not_saved.v1"}
    with pytest.raises(ConfigError, match="The student's tokenizer cannot be saved"):
        spacy_distil.distil_pipeline(teacher, config, tmp_path / "other")


def test_a_tokenizer_that_no_pipeline_could_save(teacher: Language, tmp_path: Path) -> None:
    config = cnn_student(tmp_path, teacher)
    teacher.tokenizer = Whitespace(teacher.vocab)
    with pytest.raises(ConfigError, match="is a Whitespace, but its config makes a Tokenizer"):
        spacy_distil.distil_pipeline(teacher, config, tmp_path / "out")
    tokenizer: Any = spacy.blank("en").tokenizer
    tokenizer.infix_finditer = lambda text: re.finditer("-", text)
    teacher.tokenizer = tokenizer
    with pytest.raises(ConfigError, match="The teacher's tokenizer cannot be saved"):
        spacy_distil.distil_pipeline(teacher, config, tmp_path / "out")


@pytest.fixture
def stop_words() -> Iterator[None]:
    """A callback that adds a stop word, as spaCy's docs have it, and an end to its effect."""

    @registry.callbacks("tests.stop_words.v1")
    def make() -> Any:
        def add(lang_cls: Any) -> Any:
            lang_cls.Defaults.stop_words.add("acmecorp")
            return lang_cls

        return add

    yield
    English.Defaults.stop_words.discard("acmecorp")


@pytest.mark.usefixtures("stop_words")
def test_callbacks_that_set_stop_words_are_taken(tmp_path: Path) -> None:
    callback = {"@callbacks": "tests.stop_words.v1"}
    nlp = spacy.blank("en", config={"nlp": {"before_creation": callback}})
    train_cnn(nlp, steps=2)
    path = spacy_distil.distil_pipeline(nlp, cnn_student(tmp_path, nlp), tmp_path / "out").path
    English.Defaults.stop_words.discard("acmecorp")
    student = spacy.load(path)
    assert student.config["nlp"]["before_creation"] == callback
    assert [token.is_stop for token in student("AcmeCorp ran")] == [True, False]


@pytest.mark.slow
def test_vectors_that_a_pipe_reads(tmp_path: Path) -> None:
    """And only then: they may be larger than the rest of a pipeline."""
    nlp = spacy.blank("en")
    for i, word in enumerate(("they", "sell")):
        nlp.vocab.set_vector(word, np.full(4, i + 1, dtype="f"))
    train_cnn(nlp, steps=2)
    config = cnn_student(tmp_path, nlp)
    path = spacy_distil.distil_pipeline(nlp, config, tmp_path / "without").path
    assert not spacy.load(path).vocab.vectors.size
    config["components"]["tagger"]["model"]["tok2vec"]["pretrained_vectors"] = True
    path = spacy_distil.distil_pipeline(nlp, config, tmp_path / "with").path
    student = spacy.load(path)
    assert student.vocab.get_vector("sell").tolist() == [2.0] * 4
    assert student("They sell it.")[0].tag_


def test_a_resumed_run_has_the_tokenizer(teacher: Language, tmp_path: Path) -> None:
    stopped = []

    @registry.callbacks("tests.stop_once.v1")
    def make() -> Any:
        def stop(nlp: Language, info: dict[str, Any]) -> None:
            if info["step"] == 2 and not stopped:
                stopped.append(True)
                raise RuntimeError("stopped")

        return stop

    config = cnn_student(tmp_path, teacher)
    config["training"]["before_update"] = {"@callbacks": "tests.stop_once.v1"}
    with pytest.raises(RuntimeError, match="stopped"):
        spacy_distil.distil_pipeline(teacher, config, tmp_path / "out")
    distilled = spacy_distil.distil_pipeline(teacher, config, tmp_path / "out", resume=True)
    assert stopped
    assert distilled.steps == 2
    student = spacy.load(tmp_path / "out" / "model-last")
    assert [token.text for token in student(TEXT)] == TOKENS
    assert [token.norm_ for token in student(TEXT)] == [token.norm_ for token in teacher(TEXT)]


# Languages


GERMAN = "Das ist z.B. ein Test in der Stadt, und wir haben nicht viel Zeit."


@pytest.mark.parametrize("lang", ["de", "xx"])
def test_a_student_of_another_language_has_its_own_tokenizer(
    teacher: Language, tmp_path: Path, capsys: pytest.CaptureFixture[str], lang: str
) -> None:
    """The teacher reads the student's tokens."""
    config = cnn_student(tmp_path, teacher, lang)
    (tmp_path / "text.jsonl").write_text(json.dumps({"text": f"{GERMAN}\u00a0 " * 10}))
    teacher.vocab.lookups.add_table("own_table", {"a": "b"})
    path = spacy_distil.distil_pipeline(teacher, config, tmp_path / "out").path
    student, plain = spacy.load(path), spacy.blank(lang)
    assert student.lang == lang
    for text in (GERMAN, TEXT, "  ", "👩🏽\u200d🚀 e\u0301\n北京"):
        own = [(token.text, token.norm_) for token in student(text)]
        assert own == [(token.text, token.norm_) for token in plain(text)]
    assert "own_table" not in student.vocab.lookups.tables
    output = " ".join(capsys.readouterr().out.split())
    told = (
        r"lookup tables are for English \(lang = 'en'\). The student does not get [\w, ]*own_table"
    )
    assert re.search(told, output)
    assert "tokenizes otherwise" not in output
    assert "seems to be in" not in output
    assert "the tokenizer starts from" not in output
    told = "has no distil_transformer. Only an encoder for many languages knows German"
    assert (told in output) is (lang == "de")


def test_the_teachers_tokenizer_for_another_language(
    teacher: Language, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = cnn_student(tmp_path, teacher, "de")
    config["distillation"]["student"]["tokenizer"] = "teacher"
    path = spacy_distil.distil_pipeline(teacher, config, tmp_path / "out").path
    assert [token.text for token in spacy.load(path)(TEXT)] == TOKENS
    output = " ".join(capsys.readouterr().out.split())
    assert "tokenizes by the rules of its teacher for English" in output


def test_a_teacher_of_another_language_is_recorded_on_the_students_tokens(
    teacher: Language,
) -> None:
    """Row by row, as it predicts for these words and spaces."""
    student = spacy.blank("de")
    model = {"@architectures": "spacy.Tagger.v2", "tok2vec": CNN}
    student.add_pipe("tagger", config={"model": model})
    pipe: Any = teacher.get_pipe("tagger")
    own: Any = student.get_pipe("tagger")
    own.initialize(lambda: [Example.from_dict(student.make_doc("a"), {})], labels=pipe.labels)
    texts = [
        GERMAN,
        "",
        "  ",
        TEXT,
        "a\u00a0b  c\n\n👩🏽\u200d🚀 e\u0301 \x07 北京",
        "Wort z.B. " * 120,
    ]

    def text(nlp: Language) -> Iterator[Example]:
        for each in texts:
            yield Example(nlp.make_doc(each), nlp.make_doc(each))

    transfer_set = read_transfer_set(student, None, text)
    recorder = TeacherRecorder(teacher, transfer_set, plan_heads(student, teacher, {}).heads, None)
    records = recorder.record(range(len(texts)))["tagger"]
    german = [token.text for token in transfer_set.docs[0]]
    assert german != [token.text for token in teacher.make_doc(GERMAN)]
    for number, each in enumerate(texts):
        doc = transfer_set.docs[number]
        words, spaces = [token.text for token in doc], [bool(token.whitespace_) for token in doc]
        given = Doc(teacher.vocab, words=words, spaces=spaces)
        for token, mine in zip(given, doc, strict=True):
            token.norm_ = mine.norm_
        assert given.text == each
        expected = [token.tag_ for token in pipe(given)]
        best = records["labels"][number][:, 0]
        assert [own.labels[label] for label in best] == expected


def test_rules_for_another_language_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher, student = spacy.blank("en"), spacy.blank("de")
    teacher.add_pipe("attribute_ruler")
    teacher.add_pipe("sentencizer")
    for name in ("attribute_ruler", "sentencizer"):
        student.add_pipe(name, source=teacher)
    teacher.vocab.lookups.add_table("own_table")
    warn_of_rules(student, teacher, ["attribute_ruler", "sentencizer"])
    output = " ".join(capsys.readouterr().out.split())
    assert "from another pipeline: attribute_ruler. If" in output
    assert re.search(r"does not get [\w, ]*own_table", output)
    for other in (spacy.blank("en"), spacy.blank("xx")):  # a teacher for many languages suits all
        pair = (other, teacher) if other.lang == "en" else (student, other)
        warn_of_rules(*pair, [])
    assert not capsys.readouterr().out


def test_an_encoder_that_does_not_know_the_language(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word for word in sorted(English.Defaults.stop_words) if word.isalpha()]
    letters = [chr(i) for i in range(ord("a"), ord("z") + 1)]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    pieces += [*letters, *(f"##{letter}" for letter in letters)]
    pieces += [f"[unused{i}]" for i in range(2500)]
    path = write_encoder(tmp_path / "encoder", "bert")
    raw = json.loads((path / "tokenizer.json").read_text())
    nlp = make_nlp(path)
    raw["model"]["vocab"] = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    encoder = encoder_of(nlp)
    encoder._loaded = replace(
        encoder.loaded, tokenizer=PieceTokenizer.from_str(json.dumps(raw).encode())
    )
    capsys.readouterr()
    warn_of_unknown_languages(nlp, ["en", "xx"])
    assert not capsys.readouterr().out
    warn_of_unknown_languages(nlp, ["en", "de"])
    output = " ".join(capsys.readouterr().out.split())
    assert "teacher's encoder seems to be made for English" in output
    assert "words of German (lang = 'de'), so the teacher hardly knows" in output


def test_text_of_several_languages_is_compared_with_its_own(
    teacher: Language, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And the best student is scored on the held-out documents of each."""
    config = cnn_student(tmp_path, teacher)
    (tmp_path / "de.jsonl").write_text((json.dumps({"text": f"{GERMAN} " * 9}) + "\n") * 3)
    (tmp_path / "fr.jsonl").write_text((json.dumps({"text": f"{GERMAN}! " * 9}) + "\n") * 3)
    paths = {lang: str(tmp_path / f"{lang}.jsonl") for lang in ("de", "fr")}
    config["corpora"]["text"] = {"@readers": "spacy-distil.Texts.v1", "path": paths}
    spacy_distil.distil_pipeline(teacher, config, tmp_path / "out")
    output = " ".join(capsys.readouterr().out.split())
    assert "The text without annotation (fr) seems to be in German, but" in output
    assert "annotation (de) seems" not in output
    assert json.loads((tmp_path / "out" / "distil.json").read_text())["languages"] == {}
    for lang in paths:
        lines = [
            json.dumps({"text": f"{lang} {i} {sentence}"})
            for i in range(6)
            for sentence in SENTENCES
        ]
        (tmp_path / f"{lang}.jsonl").write_text("\n".join(lines))
    for name in ("train", "dev"):
        config["corpora"][name]["path"] = None
    config["distillation"] |= {"held_out": 6}
    distilled = spacy_distil.distil_pipeline(teacher, config, tmp_path / "alone")
    scores = json.loads((tmp_path / "alone" / "distil.json").read_text())["languages"]
    assert {lang: own["documents"] for lang, own in scores.items()} == {"de": 5, "fr": 5}
    student = spacy.load(distilled.path)
    for lang, own in scores.items():
        held_out = [f"{lang} {i} {sentence}" for i in range(6) for sentence in SENTENCES][::6][:5]
        right = [
            one.tag_ == other.tag_
            for text in held_out
            for one, other in zip(student(text), teacher(text), strict=True)
        ]
        assert own["tag_acc"] == pytest.approx(np.mean(right))
    assert "German 5 " in " ".join(capsys.readouterr().out.split())


def test_a_multilingual_teacher_suits_any_student(tmp_path: Path) -> None:
    nlp = spacy.blank("xx")
    train_cnn(nlp, steps=2)
    config = cnn_student(tmp_path, nlp, lang="en")
    path = spacy_distil.distil_pipeline(nlp, config, tmp_path / "out").path
    student = spacy.load(path)
    assert (student.lang, student("don't")[0].text) == ("en", "don't")  # as the teacher has it


# Changes


@pytest.mark.slow
def test_another_tokenizer_makes_another_run_and_cache(teacher: Language, tmp_path: Path) -> None:
    """A norm alone, too: the teacher reads it."""
    config = cnn_student(tmp_path, teacher)
    config["distillation"]["cache"] = str(tmp_path / "cache")
    spacy_distil.distil_pipeline(teacher, config, tmp_path / "out")
    before = fingerprint_pipeline(teacher)
    tokenizer: Any = teacher.tokenizer
    tokenizer.add_special_case("say", [{"ORTH": "say", "NORM": "tell"}])
    assert fingerprint_pipeline(teacher) != before
    with pytest.raises(ConfigError, match="contents of the teacher"):
        spacy_distil.distil_pipeline(teacher, config, tmp_path / "out", resume=True)
    with pytest.raises(ConfigError, match=r"Changed since it was made: the teacher, the documents"):
        spacy_distil.distil_pipeline(teacher, config, tmp_path / "other")


def test_differences_are_counted_over_all_of_a_corpus(teacher: Language) -> None:
    plain = spacy.blank("en")
    docs = [plain.make_doc(text) for text in ("One two.", "AcmeCorp ran.") for _ in range(1500)]
    difference = compare_tokenizers(plain, teacher, docs)
    assert (difference.n_docs, difference.n_tokens, difference.n_different) == (1000, 3500, 1000)
    assert difference.example == ("Acme (acme!) | Corp | ran", "AcmeCorp | ran | .")
    assert compare_tokenizers(teacher, teacher, docs).n_different == 0
