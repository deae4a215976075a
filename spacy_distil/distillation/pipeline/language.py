"""The student's language: tokenizer, lookup tables and vectors, as the teacher has them.

A pipeline reads tokens as its own tokenizer makes them. The student predicts as it was taught only
on tokens that are made in the same way, with the same norms.

A student of another language has a tokenizer of its own. The teacher reads the student's tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from confection import Config
from spacy.language import Language
from spacy.tokens import Doc
from spacy.util import get_lang_class
from thinc.api import Model
from wasabi import msg

from spacy_distil.component.shim import get_encoder
from spacy_distil.distillation.pipeline.hidden import find_encoder
from spacy_distil.errors import ConfigError
from spacy_distil.text.languages import (
    guess_language,
    guess_tokenizer_language,
    language_name,
)

# "teacher": the tokenizer of the teacher. "config": the one that the student's config names.
# "auto": the teacher's, unless the config names another one than the default of the language, or
# the student is a pipeline for another language.
TokenizerChoice = Literal["auto", "teacher", "config"]

SETTING = "distillation.student.tokenizer"
# Callbacks that may change a language's data or its tokenizer, such as its stop words.
CALLBACKS = ("before_creation", "after_creation")
# The language of pipelines for many languages.
MULTILINGUAL = "xx"
# Factories of components whose rules are made for a language.
LANGUAGE_RULES = ("attribute_ruler", "lemmatizer", "entity_ruler", "span_ruler")
# Documents that the tokenizers are compared on, at most.
N_COMPARED = 1000


def take_language(
    config: Config, teacher: Language, choice: TokenizerChoice
) -> tuple[Config, bool]:
    """Give the student's config the tokenizer of the teacher, unless it names one.

    config: the student's, not interpolated.
    RETURNS (config, taken): whether the student takes the tokenizer. See `take_state`.
    """
    lang = config.interpolate()["nlp"]["lang"]
    foreign = is_foreign(lang, teacher)
    taken = choice == "teacher" or (
        choice == "auto" and not foreign and not _names_tokenizer(config, teacher)
    )
    if foreign and taken:
        msg.warn(
            f"The student is a pipeline for {describe_lang(lang)}, and tokenizes by the rules of "
            f'its teacher for {describe_lang(str(teacher.lang))}. {SETTING} = "auto" takes the '
            "tokenizer of the student's own language"
        )
    if not taken:
        return config, False
    config, theirs = config.copy(), teacher.config.interpolate()
    for section in ("nlp", "initialize"):
        config.setdefault(section, {})["tokenizer"] = theirs[section]["tokenizer"]
    for name in CALLBACKS:
        if config["nlp"].get(name) is None:
            config["nlp"][name] = theirs["nlp"][name]
    return config, True


def take_state(student: Language, teacher: Language, *, tokenizer: bool) -> None:
    """Give the student what the teacher's tokenizer and vocab have learned or been told.

    These are the rules of the tokenizer, the lookup tables (such as norms), and the vectors if a
    pipe of the student reads them. Tables and vectors that the student's config names stay its own.
    A student of another language gets no tables, see `warn_of_rules`.

    student: made, but not initialized.
    tokenizer: whether the student takes the tokenizer. Its config has the teacher's block.
    Raises ConfigError if the tokenizers are of different classes, or the student's cannot be saved.
    """
    settings = student.config.interpolate()["initialize"]
    vocab = teacher.vocab
    is_own = not is_foreign(str(student.lang), teacher)
    if settings["lookups"] is None and len(vocab.lookups) and is_own:
        # This also forgets lexemes that had other norms.
        student.vocab.from_bytes(
            vocab.to_bytes(exclude=["strings", "vectors"]), exclude=["strings", "vectors"]
        )
    source = teacher if tokenizer else student
    own: Any = student.tokenizer
    theirs: Any = source.tokenizer
    if type(own) is not type(theirs):
        raise ConfigError(
            f"The teacher's tokenizer is a {type(theirs).__name__}, but its config makes a "
            f"{type(own).__name__}, so no saved pipeline can have it. Register the tokenizer and "
            f'name it in [nlp.tokenizer] of the teacher, or set {SETTING} = "config".'
        )
    rules = tokenizer_to_bytes(source, owner="teacher" if tokenizer else "student")
    if rules:
        own.from_bytes(rules, exclude=["vocab"])
    if settings["vectors"] is None and vocab.vectors.size and reads_vectors(student):
        for key in vocab.vectors:
            student.vocab.strings.add(vocab.strings[key])
        student.vocab.vectors.from_bytes(
            vocab.vectors.to_bytes(exclude=["strings"]), exclude=["strings"]
        )
        student.vocab.vectors.name = vocab.vectors.name


def tokenizer_to_bytes(nlp: Language, *, owner: Literal["teacher", "student"]) -> bytes:
    """Serialize the rules of a tokenizer, without the vocab. A tokenizer without state has none.

    owner: which of the two the pipeline is, for the error.
    Raises ConfigError for a tokenizer that cannot be saved.
    """
    tokenizer: Any = nlp.tokenizer
    if not hasattr(tokenizer, "to_bytes"):
        return b""
    try:
        return bytes(tokenizer.to_bytes(exclude=["vocab"]))
    except AttributeError as error:
        raise ConfigError(
            f"The {owner}'s tokenizer cannot be saved, nor can a pipeline that has it. Its "
            "prefix_search, suffix_search, infix_finditer, token_match and url_match must be "
            "methods of compiled regular expressions, such as re.compile(...).search, or None. "
            f"({error})"
        ) from error


@contextmanager
def keep_tokenizer(nlp: Language) -> Iterator[None]:
    """Let `nlp.initialize` leave the tokenizer as it is. Some would be emptied, or read files."""
    tokenizer: Any = nlp.tokenizer
    if not hasattr(tokenizer, "initialize"):
        yield
        return
    # The rest of the config stays the same object: pipes write into it.
    settings = nlp.config["initialize"]["tokenizer"]
    nlp.config["initialize"]["tokenizer"] = {}
    tokenizer.initialize = lambda get_examples, nlp=None: None
    try:
        yield
    finally:
        del tokenizer.initialize
        nlp.config["initialize"]["tokenizer"] = settings


def reads_vectors(nlp: Language) -> bool:
    """Tell whether a pipe reads the static vectors of the vocab."""
    models = (getattr(pipe, "model", None) for _, pipe in nlp.pipeline)
    return any(
        node.name == "static_vectors"
        for model in models
        if isinstance(model, Model)
        for node in model.walk()
    )


def is_foreign(lang: str, teacher: Language) -> bool:
    """Tell whether a language is not the teacher's. A teacher for many languages knows all."""
    return lang != teacher.lang != MULTILINGUAL


def warn_of_rules(student: Language, teacher: Language, sourced: Iterable[str]) -> None:
    """Tell the user in yellow what a teacher of another language has that does not suit.

    sourced: names of the student's components from other pipelines.
    """
    if not is_foreign(str(student.lang), teacher):
        return
    language = describe_lang(str(teacher.lang))
    if tables := teacher.vocab.lookups.tables:
        msg.warn(
            f"The teacher's lookup tables are for {language}. The student does not get "
            f"{', '.join(sorted(tables))}: name tables of its own in [initialize] lookups"
        )
    rules = [name for name in sourced if student.get_pipe_meta(name).factory in LANGUAGE_RULES]
    if rules:
        msg.warn(
            f"Components with rules that come from another pipeline: {', '.join(rules)}. If their "
            f"rules are for {language}, remove them from [nlp] pipeline and from [components]"
        )


def warn_of_unknown_languages(teacher: Language, langs: Iterable[str]) -> None:
    """Tell the user in yellow of languages that the teacher's encoder does not seem to know.

    langs: codes of the languages of the documents.
    """
    foreign = [lang for lang in langs if is_foreign(lang, teacher) and lang != MULTILINGUAL]
    encoder = find_encoder(teacher)
    if encoder is None:
        if foreign:
            msg.warn(
                f"The teacher is a pipeline for {describe_lang(str(teacher.lang))}, and has no "
                "distil_transformer. Only an encoder for many languages knows "
                f"{', '.join(map(describe_lang, foreign))}"
            )
        return
    tokenizer = get_encoder(encoder.model).loaded.tokenizer
    for lang in foreign:
        own = guess_tokenizer_language(
            lambda texts: [pieces.ids.tolist() for pieces in tokenizer(texts)],
            tokenizer.largest_id + 1,
            lang,
        )
        if own is not None:
            msg.warn(
                f"The teacher's encoder seems to be made for {language_name(own)}: its tokenizer "
                f"splits the most frequent words of {describe_lang(lang)}, so the teacher hardly "
                "knows the language. Train a teacher on an encoder for many languages"
            )


def warn_of_foreign_text(texts: Iterable[str], name: str, lang: str) -> None:
    """Tell the user in yellow that documents seem to be in another language than the pipeline's.

    name: of the documents, at the beginning of a sentence.
    """
    found = guess_language(texts, lang)
    if found is not None:
        msg.warn(
            f"{name} seems to be in {language_name(found)}, but the pipeline's language is "
            f"{describe_lang(lang)}"
        )


def describe_lang(lang: str) -> str:
    """Name a language and its code, such as "German (lang = 'de')"."""
    return f"{language_name(lang)} (lang = {lang!r})"


def _names_tokenizer(config: Config, teacher: Language) -> bool:
    """Tell whether a config has a tokenizer of its own: not the language's, nor the teacher's."""
    config, theirs = config.interpolate(), teacher.config.interpolate()
    defaults = get_lang_class(config["nlp"]["lang"]).default_config
    return any(
        config.get(section, {}).get("tokenizer")
        not in (None, {}, theirs[section]["tokenizer"], defaults[section]["tokenizer"])
        for section in ("nlp", "initialize")
    )


# Comparison


@dataclass(frozen=True)
class TokenizerDifference:
    """How two tokenizers differ.

    n_docs, n_tokens: documents that were compared, and the teacher's tokens in them.
    n_different: tokens that the student does not make, or with another norm.
    example: how the first different document is tokenized: the teacher's and the student's way.
    """

    n_docs: int
    n_tokens: int
    n_different: int
    example: tuple[str, str]


def compare_tokenizers(
    student: Language, teacher: Language, docs: Sequence[Doc]
) -> TokenizerDifference:
    """Compare the tokens of teacher and student, on N_COMPARED docs from all over the corpus.

    docs: of either pipeline. Their texts count.
    """
    step = max(1, -(-len(docs) // N_COMPARED))
    chosen = docs[::step]
    n_tokens = n_different = 0
    example = ("", "")
    for text in (doc.text for doc in chosen):
        theirs, own = _tokens(teacher.tokenizer(text)), _tokens(student.tokenizer(text))
        different = theirs.keys() - own.keys()
        n_tokens += len(theirs)
        n_different += len(different)
        if different and not any(example):
            first = min(different)[0]
            example = (_around(theirs, first), _around(own, first))
    return TokenizerDifference(len(chosen), n_tokens, n_different, example)


def warn_of_differences(difference: TokenizerDifference) -> None:
    """Tell the user in yellow that the student tokenizes otherwise than its teacher."""
    if difference.n_different:
        theirs, own = difference.example
        msg.warn(
            f"The student tokenizes otherwise than its teacher: of {difference.n_tokens:,} tokens "
            f"in {difference.n_docs:,} documents, {difference.n_different:,} differ",
            f"The first: {theirs} (teacher), {own} (student). The student's config names a "
            f'tokenizer, or a callback changes it. {SETTING} = "teacher" takes the teacher\'s.',
        )


_Tokens = Mapping[tuple[int, int, str], str]


def _tokens(doc: Doc) -> _Tokens:
    """Return the tokens of a doc by start, end and norm."""
    return {(token.idx, token.idx + len(token), token.norm_): token.text for token in doc}


def _around(tokens: _Tokens, start: int) -> str:
    """Show up to three tokens from the one that a character is in."""
    found: Iterable[tuple[int, int, str]] = [key for key in tokens if key[1] > start]
    return " | ".join(
        tokens[key] if tokens[key].lower() == key[2].lower() else f"{tokens[key]} ({key[2]})"
        for key in sorted(found)[:3]
    )
