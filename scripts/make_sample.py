"""Write the sample corpus: small original English stories with topics, entities and UPOS tags.

    python -m scripts.make_sample --output corpus/sample --seed 0

Every document is put together from the pieces in `sample_grammar.txt`. A part of the words, names
and pieces is kept out of the training documents, so that those for testing hold something new. The
same seed writes the same bytes.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from wasabi import msg

from spacy_distil.errors import CorpusError

GRAMMAR = Path(__file__).with_name("sample_grammar.txt")

# Letters of the grammar and the parts of speech that they stand for.
TAGS = {
    "N": "NOUN",
    "V": "VERB",
    "J": "ADJ",
    "R": "ADV",
    "X": "AUX",
    "P": "PROPN",
    "D": "DET",
    "O": "PRON",
    "A": "ADP",
    "C": "CCONJ",
    "S": "SCONJ",
    "T": "PART",
    "M": "NUM",
    "I": "INTJ",
    "Y": "SYM",
    "U": "PUNCT",
}

# Words with one part of speech wherever they occur here. The ambiguous ones are not listed.
CLOSED = {
    "DET": "the a an this these those every each some any no another both all",
    "PRON": "i you he she it we they me him her us them my your his its our their who which what "
    "something nothing everything everyone nobody someone anything anyone mine myself",
    "ADP": "of in on at to with from by for about between during without through near into behind "
    "against across under despite onto beside",
    "CCONJ": "and or but nor &",
    "SCONJ": "if because although while whether unless",
    "AUX": "is are was were be been am will would can could should must may might 'm 're 'll 've "
    "'d ca wo",
    "PART": "not n't",
    "ADV": "very too also again still never always often here now then just only soon already "
    "almost quite later twice ever when where how why so perhaps maybe rather instead really "
    "away together somewhere once",
    "NUM": "one two three four five six seven eight nine ten twelve fifteen twenty thirty forty "
    "hundred",
    "PUNCT": '. , ! ? : ; " ( ) - ...',
    "SYM": "$ %",
}

# Lists whose entries are entities.
LABELS = {
    **dict.fromkeys(("company", "team", "club", "hotel", "place", "school", "paper"), "ORG"),
    **dict.fromkeys(("town", "country", "sight", "street"), "LOC"),
}
# Lists too small, or too closed, to hold a part of them out of the training documents.
WHOLE = {
    *("day", "month", "num", "big", "mins", "pct", "price", "deg", "grams", "age"),
    *("year", "born", "clock", "score"),
}

SIZES = {"train": 240, "dev": 60, "test": 60}
N_UNLABELLED = 640
MAX_SENTENCES = 8
# One entry of a list in so many is kept for the documents that are not trained on.
HELD_OUT_WORDS = 4
HELD_OUT_PIECES = 6
# How often a document borrows a sentence from another topic, or is written without capitals.
BORROWED = 0.3
LOWER_CASE = 0.06

OPENING = ('"', "(")
CLOSED_TAGS = {word: tag for tag, words in CLOSED.items() for word in words.split()}
PRONOUNS = {"he": ("she", "he"), "him": ("her", "him"), "his": ("her", "his")}
VOWEL_SOUND = re.compile(r"[aeio]|u(?!ni|se|su)|hour|honest|8|11\b|18\b", re.IGNORECASE)

T = TypeVar("T")


@dataclass(frozen=True)
class Token:
    """glued: no space before it. label: entity label or "". begin: first token of its entity."""

    text: str
    tag: str
    glued: bool = False
    label: str = ""
    begin: bool = False


@dataclass
class Story:
    """A finished document: sentences of tokens."""

    name: str
    topic: str
    sentences: list[list[Token]]


def trained_on(entries: Sequence[T], share: int) -> list[T]:
    """`entries` without every `share`-th, which is held out."""
    return [entry for index, entry in enumerate(entries) if index % share != share - 1]


@dataclass
class Grammar:
    """What `sample_grammar.txt` says.

    lists: entries by name of the list.
    stories: pieces by topic, kind and place in the document.
    anywhere: pieces that fit any topic, by register.
    """

    lists: dict[str, list[str]] = field(default_factory=dict)
    stories: dict[str, dict[str, dict[str, list[str]]]] = field(default_factory=dict)
    anywhere: dict[str, list[str]] = field(default_factory=dict)


def read_grammar(path: Path = GRAMMAR) -> Grammar:
    grammar = Grammar()
    entries: list[str] = []
    in_list = False
    for number, line in enumerate(path.read_text(encoding="utf8").splitlines(), start=1):
        line = line.strip()
        if line.startswith("["):
            entries = []
            names = line.strip("[]").split()
            in_list = names[0] == "list"
            if in_list:
                grammar.lists[names[1]] = entries
            elif names[0] == "anywhere":
                grammar.anywhere[names[1]] = entries
            elif len(names) == 3:
                kinds = grammar.stories.setdefault(names[0], {})
                kinds.setdefault(names[1], {})[names[2]] = entries
            else:
                raise CorpusError(f"{path}:{number}: heading '{line}', expected three names")
        elif line and not line.startswith("#"):
            parts = line.split(";") if in_list else [line]
            entries.extend(part.strip() for part in parts if part.strip())
    return grammar


class Words:
    """The part of a grammar that a split may draw from.

    everything: False for the training documents, which a part of it is kept from.
    """

    def __init__(self, grammar: Grammar, *, everything: bool):
        self.everything = everything
        self.grammar = grammar
        self.lists = {
            name: entries if everything or name in WHOLE else trained_on(entries, HELD_OUT_WORDS)
            for name, entries in grammar.lists.items()
        }

    def pieces(self, entries: Sequence[str]) -> list[str]:
        return list(entries) if self.everything else trained_on(entries, HELD_OUT_PIECES)


def choose(rng: random.Random, items: Sequence[T]) -> T:
    # Not random.choice: only random() is promised to give the same numbers in every Python.
    return items[int(rng.random() * len(items))]


@dataclass
class Person:
    first: str
    last: str
    female: bool
    introduced: bool = False


@dataclass
class Writer:
    """Writes one document: keeps the cast, and avoids saying the same thing twice.

    formal: whether people are called by their last name once they are known.
    """

    rng: random.Random
    words: Words
    formal: bool
    cast: dict[str, list[Token]] = field(default_factory=dict)
    people: dict[str, Person] = field(default_factory=dict)
    used: dict[str, set[str]] = field(default_factory=dict)

    def draw(self, name: str, entries: Sequence[str]) -> str:
        """An entry that this document has not used, as long as there is one."""
        used = self.used.setdefault(name, set())
        fresh = [entry for entry in entries if entry not in used]
        if not fresh:
            used.clear()
            fresh = list(entries)
        entry = choose(self.rng, fresh)
        used.add(entry)
        return entry

    def fits(self, piece: str) -> bool:
        """Whether everybody that a pronoun of `piece` refers to is known by then."""
        known = {name for name, person in self.people.items() if person.introduced}
        for slot in re.findall(r"\{(\w+)\}", piece):
            known.add(slot)
            match = re.fullmatch(r"(?:he|him|his)(\d)", slot.lower())
            if match and f"Per{match[1]}" not in known:
                return False
        return True

    def sentences(self, piece: str) -> list[list[Token]]:
        return [finish(self.tokens(part.split())) for part in piece.split("||")]

    def tokens(self, items: Sequence[str]) -> list[Token]:
        tokens: list[Token] = []
        for item in items:
            glued, item = item.startswith("~"), item.lstrip("~")
            slot = re.fullmatch(r"\{(\w+)\}", item)
            new = self.slot(slot[1]) if slot else [plain(item)]
            first = new[0]
            new[0] = Token(first.text, first.tag, glued, first.label, first.begin)
            tokens.extend(new)
        return tokens

    def slot(self, slot: str) -> list[Token]:
        base, number = re.fullmatch(r"([A-Za-z]+)(\d*)", slot).groups()  # type: ignore[union-attr]
        name = base.lower()
        if name in PRONOUNS:
            person = self.person(f"Per{number}")
            return [Token(PRONOUNS[name][0 if person.female else 1], "PRON")]
        if name == "per":
            known = self.person(slot) if number else self.new_person()
            return label(known_as(known, self.formal), "PER")
        if name == "last":
            return label([Token(self.draw(name, self.words.lists[name]), "PROPN")], "PER")
        if not number:
            return self.entry(name)
        if slot not in self.cast:
            self.cast[slot] = self.entry(name)
        return list(self.cast[slot])

    def entry(self, name: str) -> list[Token]:
        tokens = self.tokens(self.draw(name, self.words.lists[name]).split())
        return label(tokens, LABELS[name]) if name in LABELS else tokens

    def person(self, slot: str) -> Person:
        if slot not in self.people:
            self.people[slot] = self.new_person()
        return self.people[slot]

    def new_person(self) -> Person:
        female = self.rng.random() < 0.5
        kind = "female" if female else "male"
        first, last = (self.draw(name, self.words.lists[name]) for name in (kind, "last"))
        return Person(first, last, female)


def known_as(person: Person, formal: bool) -> list[Token]:
    """The full name at the first mention, one name after that."""
    names = [person.first, person.last]
    if person.introduced:
        names = [person.last if formal else person.first]
    person.introduced = True
    return [Token(name, "PROPN") for name in names]


def label(tokens: Sequence[Token], name: str) -> list[Token]:
    """Mark `tokens` as one entity, leaving an article in front out of it."""
    begin = 1 if tokens[0].text == "the" else 0
    return [
        Token(token.text, token.tag, token.glued, name if index >= begin else "", index == begin)
        for index, token in enumerate(tokens)
    ]


def plain(item: str) -> Token:
    """`word|T`, or a word whose part of speech `CLOSED` knows."""
    word, _, code = item.partition("|")
    if code:
        return Token(word, TAGS[code])
    if re.fullmatch(r"[\d.,:-]*\d", word):
        return Token(word, "NUM")
    if word.lower() not in CLOSED_TAGS:
        raise CorpusError(f"'{item}' has no part of speech: write '{item}|N' or the like")
    return Token(word, CLOSED_TAGS[word.lower()])


def finish(tokens: list[Token]) -> list[Token]:
    """Space the punctuation, choose between 'a' and 'an', begin with a capital."""
    done: list[Token] = []
    opened = False
    for index, token in enumerate(tokens):
        text, glued = token.text, token.glued
        if text in ("a", "A") and index + 1 < len(tokens):
            text = text + "n" * bool(VOWEL_SOUND.match(tokens[index + 1].text))
        elif text == "an" and not VOWEL_SOUND.match(tokens[index + 1].text):
            text = "a"
        closing = token.tag == "PUNCT" and text not in OPENING
        glued = glued or closing or opened
        opened = text in OPENING and not token.glued
        done.append(Token(text, token.tag, glued, token.label, token.begin))
    for index, token in enumerate(done):
        if token.text[0].isalnum():
            text = token.text[0].upper() + token.text[1:]
            done[index] = Token(text, token.tag, token.glued, token.label, token.begin)
            break
    return done


def lower(token: Token) -> Token:
    return Token(token.text.lower(), token.tag, token.glued, token.label, token.begin)


def write_story(name: str, topic: str, rng: random.Random, words: Words) -> Story:
    """One document of 3 to 8 sentences: an opening, some body, mostly a close."""
    kinds = words.grammar.stories[topic]
    kind = choose(rng, sorted(kinds))
    register = kind.split("-")[0]
    story = kinds[kind]
    writer = Writer(rng, words, formal=register == "report")
    n_body = 2 + int(rng.random() * 4)
    plan = [words.pieces(story["open"])]
    for _ in range(n_body):
        plan.append(
            words.pieces(words.grammar.anywhere[register] if rng.random() < 0.25 else story["body"])
        )
    if rng.random() < BORROWED:
        others = [
            pieces["body"]
            for other, other_kinds in sorted(words.grammar.stories.items())
            for other_kind, pieces in sorted(other_kinds.items())
            if other != topic and other_kind.startswith(register)
        ]
        plan[1 + int(rng.random() * n_body)] = words.pieces(choose(rng, others))
    if rng.random() < 0.8:
        plan.append(words.pieces(story["close"]))
    sentences: list[list[Token]] = []
    for pieces in plan:
        piece = writer.draw("piece", [piece for piece in pieces if writer.fits(piece)])
        sentences.extend(writer.sentences(piece))
    if register == "post" and rng.random() < LOWER_CASE:
        sentences = [[lower(token) for token in sentence] for sentence in sentences]
    return Story(name, topic, sentences[:MAX_SENTENCES])


def write_stories(split: str, n_docs: int, seed: int, words: Words) -> Iterator[Story]:
    """`n_docs` documents, their topics in turn but in no fixed order."""
    topics = sorted(words.grammar.stories)
    for number in range(n_docs):
        if number % len(topics) == 0:
            rng = random.Random(f"{seed} {split} topics {number}")
            topics = sorted(topics, key=lambda topic: (rng.random(), topic))
        topic = topics[number % len(topics)]
        rng = random.Random(f"{seed} {split} {number}")
        yield write_story(f"{topic}-{split}-{number + 1:04}", topic, rng, words)


def to_text(sentence: Sequence[Token]) -> str:
    parts = [("" if token.glued or not i else " ") + token.text for i, token in enumerate(sentence)]
    return "".join(parts)


def to_conllu(story: Story) -> str:
    lines = [f"# newdoc id = {story.name}", f"# topic = {story.topic}"]
    for number, sentence in enumerate(story.sentences, start=1):
        lines.append(f"# sent_id = {story.name}-{number}")
        lines.append(f"# text = {to_text(sentence)}")
        for index, token in enumerate(sentence):
            misc = []
            if token.label:
                misc.append(f"NER={'B' if token.begin else 'I'}-{token.label}")
            if index + 1 < len(sentence) and sentence[index + 1].glued:
                misc.append("SpaceAfter=No")
            columns = (index + 1, token.text, "_", token.tag, *"_____", "|".join(misc) or "_")
            lines.append("\t".join(map(str, columns)))
        lines.append("")
    return "\n".join(lines) + "\n"


def make_sample(output: Path, *, seed: int = 0) -> None:
    """Write `train.conllu`, `dev.conllu`, `test.conllu` and `unlabelled.txt` to `output`."""
    output.mkdir(parents=True, exist_ok=True)
    grammar = read_grammar()
    known, everything = Words(grammar, everything=False), Words(grammar, everything=True)
    for split, size in SIZES.items():
        words = known if split == "train" else everything
        text = "".join(map(to_conllu, write_stories(split, size, seed, words)))
        (output / f"{split}.conllu").write_text(text, encoding="utf8", newline="\n")
    stories = write_stories("unlabelled", N_UNLABELLED, seed, everything)
    paragraphs = (" ".join(map(to_text, story.sentences)) for story in stories)
    text = "\n\n".join(paragraphs) + "\n"
    (output / "unlabelled.txt").write_text(text, encoding="utf8", newline="\n")


def main(
    output: Annotated[Path, typer.Option(help="Where to write")] = Path("corpus/sample"),
    seed: Annotated[int, typer.Option(help="Another seed writes another corpus")] = 0,
) -> None:
    """Write the sample corpus."""
    make_sample(output, seed=seed)
    msg.good(f"Wrote the sample corpus to {output}")


if __name__ == "__main__":
    typer.run(main)
