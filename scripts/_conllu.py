"""CoNLL-U treebanks and the IOB2 entity files that go with them, read into plain sentences.

Only what the pipelines train on is kept: words, spacing, UPOS, XPOS and the MISC column. Lemmas,
features and trees are not. A sentence outside the documents that `# newdoc` begins is a document of
its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

from spacy.language import Language
from spacy.tokens import Doc
from wasabi import msg

from scripts._notes import Notes
from spacy_distil.errors import CorpusError
from spacy_distil.text import readers

N_COLUMNS = 10
UPOS = (
    *("ADJ", "ADP", "ADV", "AUX", "CCONJ", "DET", "INTJ", "NOUN", "NUM"),
    *("PART", "PRON", "PROPN", "PUNCT", "SCONJ", "SYM", "VERB", "X"),
)
ENTITY_TYPES = ("PER", "ORG", "LOC")
# Labels that the final release of Universal NER dropped. They are read as "no entity".
UNRELEASED_TYPES = ("OTH", "O", "")
# Keys of the MISC column that tools write entity tags to.
ENTITY_KEYS = ("NER", "NE", "name")
_PREFIXES = {"B": "B", "I": "I", "L": "I", "E": "I", "U": "B", "S": "B"}
UNMATCHED = "sentences whose entities are left missing"


@dataclass
class Sentence:
    """One sentence of a treebank; the lists have one entry per syntactic word.

    spaces: whether a space follows the word in the text.
    upos, xpos: "" for the "_" of the treebank.
    misc: the MISC column as a dict.
    paragraph: whether a paragraph starts here.
    """

    sent_id: str
    words: list[str] = field(default_factory=list)
    spaces: list[bool] = field(default_factory=list)
    upos: list[str] = field(default_factory=list)
    xpos: list[str] = field(default_factory=list)
    misc: list[dict[str, str]] = field(default_factory=list)
    paragraph: bool = False

    @property
    def text(self) -> str:
        return self.spaced_text.rstrip()

    @property
    def spaced_text(self) -> str:
        """The text with the space after its last word, if there is one."""
        pairs = zip(self.words, self.spaces, strict=True)
        return "".join(word + " " * space for word, space in pairs)


@dataclass
class Document:
    """The sentences between two `# newdoc` lines, or one sentence.

    meta: the `# key = value` comments that stand between `# newdoc` and the first `# sent_id`.
    notes: what is lost or repaired.
    """

    name: str
    sentences: list[Sentence] = field(default_factory=list)
    meta: dict[str, str] = field(default_factory=dict)
    notes: Notes = field(default_factory=Notes)

    def paragraphs(self) -> list[str]:
        """The text, one string per paragraph."""
        texts: list[str] = []
        for sentence in self.sentences:
            if sentence.paragraph or not texts:
                texts.append("")
            texts[-1] += sentence.spaced_text
        return [text.rstrip() for text in texts]


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(line number from 1, line without its end) of a UTF-8 text file, with or without a BOM."""
    if not path.is_file():
        raise CorpusError(f"No such file: {path}. Run the project's 'assets' command first.")
    for number, line in readers.read_lines(path):
        yield number, line.rstrip("\r\n")


def _comment(line: str) -> tuple[str, str]:
    """`# key = value` as a pair; the value is "" if it is missing."""
    key, _, value = line.lstrip("#").partition("=")
    return key.strip(), value.strip()


def _dash(value: str) -> str:
    return "" if value == "_" else value


def _misc(column: str) -> dict[str, str]:
    items = (item.partition("=") for item in _dash(column).split("|") if item)
    return {key: value for key, _, value in items}


@dataclass
class _Range:
    """A multiword token such as `8-9 don't`, until its last word has been read."""

    last: int
    surface: str
    space_after: bool
    n_words: int


class _ConlluReader:
    def __init__(self, path: Path):
        self.path = path
        self.documents: list[Document] = []
        self.in_document = False
        self.sentence: Sentence | None = None
        self.range: _Range | None = None
        self.new_paragraph = False

    def fail(self, number: int, problem: str) -> CorpusError:
        return CorpusError(f"{self.path}:{number}: {problem}")

    def read(self) -> list[Document]:
        number = 0
        for number, line in read_lines(self.path):
            if not line.strip():
                self.end_sentence()
            elif line.startswith("#") and (self.sentence is None or not self.sentence.words):
                self.read_comment(number, line)
            else:
                self.read_row(number, line.split("\t"))
        self.end_sentence()
        if not any(document.sentences for document in self.documents):
            raise CorpusError(f"{self.path}: no sentence in {number} lines")
        return self.documents

    def read_comment(self, number: int, line: str) -> None:
        key, value = _comment(line)
        if key.startswith("newdoc"):
            self.documents.append(Document(name=value or f"document-{len(self.documents) + 1}"))
            self.new_paragraph = self.in_document = True
        elif key.startswith("newpar"):
            self.new_paragraph = True
            if self.sentence is not None:
                self.sentence.paragraph = True
        elif key == "sent_id":
            self.start_sentence(value)
        elif self.in_document and not self.documents[-1].sentences and self.sentence is None:
            self.documents[-1].meta[key] = value

    def start_sentence(self, sent_id: str) -> None:
        if not self.in_document:
            self.documents.append(Document(name=sent_id))
            self.documents[-1].notes.add("sentences that are documents of their own", sent_id)
        self.sentence = Sentence(sent_id=sent_id, paragraph=self.new_paragraph)
        self.new_paragraph = False

    def read_row(self, number: int, row: Sequence[str]) -> None:
        if len(row) != N_COLUMNS:
            raise self.fail(number, f"{len(row)} columns, expected {N_COLUMNS} separated by tabs")
        if self.sentence is None:
            self.start_sentence(f"line-{number}")
        assert self.sentence is not None
        index, form = row[0], row[1]
        space_after = _misc(row[9]).get("SpaceAfter") != "No"
        if "." in index:
            self.documents[-1].notes.add(
                "empty nodes skipped", f"{self.sentence.sent_id} {index} {form}"
            )
        elif "-" in index:
            last = int(index.split("-")[1])
            self.range = _Range(last, form, space_after, n_words=0)
        elif not index.isdigit() or int(index) != len(self.sentence.words) + 1:
            expected = len(self.sentence.words) + 1
            raise self.fail(number, f"word index '{index}', expected '{expected}'")
        elif not form:
            raise self.fail(number, "a word with no form")
        elif row[3] not in (*UPOS, "_"):
            raise self.fail(number, f"UPOS '{row[3]}', expected _ or one of {', '.join(UPOS)}")
        else:
            sentence = self.sentence
            sentence.words.append(form)
            sentence.spaces.append(space_after)
            sentence.upos.append(_dash(row[3]))
            sentence.xpos.append(_dash(row[4]))
            sentence.misc.append(_misc(row[9]))
            if self.range is not None:
                self.range.n_words += 1
                if int(index) == self.range.last:
                    self.end_range()

    def end_range(self) -> None:
        """Space the words of a multiword token so that the text stays right if it can."""
        assert self.sentence is not None
        assert self.range is not None
        n_words, surface = self.range.n_words, self.range.surface
        first = len(self.sentence.words) - n_words
        words = self.sentence.words[first:]
        joined = "".join(words) == surface
        if not joined:
            # 'du' = 'de' + 'le': no spacing of the words gives the surface form.
            place = f"{self.sentence.sent_id} {surface} = {' + '.join(words)}"
            notes = self.documents[-1].notes
            notes.add("multiword tokens written out as their words", place)
        self.sentence.spaces[first:] = [not joined] * (n_words - 1) + [self.range.space_after]
        self.range = None

    def end_sentence(self) -> None:
        if self.range is not None and self.sentence is not None:
            raise CorpusError(
                f"{self.path}: sentence '{self.sentence.sent_id}' ends before the last word of "
                f"the multiword token '{self.range.surface}'"
            )
        if self.sentence is not None and self.sentence.words:
            self.documents[-1].sentences.append(self.sentence)
        self.sentence = None


def read_conllu(path: Path, notes: Notes) -> list[Document]:
    """The documents of a CoNLL-U file, in its order.

    Multiword tokens become their syntactic words; empty nodes are skipped. Both are counted in the
    document's notes if something of the file is lost.

    notes: of the file.
    """
    documents = _ConlluReader(path).read()
    full = [document for document in documents if document.sentences]
    notes.add_many("documents without a sentence", [d.name for d in documents if not d.sentences])
    return full


@dataclass
class NamedSentence:
    """Words with IOB2 tags, as an entity file has them.

    notes: what was repaired or left out.
    document: the name of its document, "" outside of all.
    text: the sentence with its spacing, "" if the file lacks it.
    """

    words: list[str] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    notes: Notes = field(default_factory=Notes)
    document: str = ""
    text: str = ""


def read_iob2(path: Path) -> dict[str, NamedSentence]:
    """Sentences of a Universal NER file by `sent_id`: columns index, word, tag and more."""
    sentences: dict[str, NamedSentence] = {}
    document = sent_id = ""
    for number, line in read_lines(path):
        if not line.strip():
            sent_id = ""
        elif line.startswith("#"):
            key, value = _comment(line)
            if key.startswith("newdoc"):
                document = value or f"line-{number}"
            elif key == "sent_id":
                if value in sentences:
                    raise CorpusError(f"{path}:{number}: sent_id '{value}' occurs twice")
                sent_id = value
                sentences[sent_id] = NamedSentence(document=document)
            elif key == "text" and sent_id:
                sentences[sent_id].text = value
        else:
            columns = line.split("\t")
            if not sent_id or len(columns) < 3:
                problem = f"{len(columns)} columns" if sent_id else "no '# sent_id' before"
                raise CorpusError(
                    f"{path}:{number}: {problem}; expected index, word and IOB2 tag "
                    "separated by tabs, in a sentence that has a sent_id"
                )
            place = f"{sent_id} {columns[0]} {columns[1]} {columns[2]}"
            try:
                tag = released_tag(columns[2], place, sentences[sent_id].notes)
            except ValueError as error:
                raise CorpusError(f"{path}:{number}: {error}") from error
            sentences[sent_id].words.append(columns[1])
            sentences[sent_id].tags.append(tag)
    for sent_id, sentence in sentences.items():
        sentence.tags = repair_iob(sentence.tags, sent_id, sentence.notes)
    return sentences


def named_documents(
    named: dict[str, NamedSentence], path: Path
) -> Iterator[tuple[Document, list[str]]]:
    """Documents of an entity file that stands alone, with their tags. They have no other tags.

    path: of the file, for messages.
    """
    for name, group in groupby(named.items(), key=lambda item: item[1].document or item[0]):
        document, tags = Document(name), []
        for sent_id, source in group:
            try:
                spaces = find_spaces(source.words, source.text)
            except ValueError as error:
                raise CorpusError(f"{path}: sentence '{sent_id}': {error}") from error
            blank = [""] * len(source.words)
            misc: list[dict[str, str]] = [{} for _ in blank]
            sentence = Sentence(sent_id, source.words, spaces, blank, blank, misc)
            document.sentences.append(sentence)
            document.notes.merge(source.notes)
            tags.extend(source.tags)
        yield document, tags


def find_spaces(words: Sequence[str], text: str) -> list[bool]:
    """Tell after which words of a sentence a space follows. One follows the last word."""
    spaces, rest = [], text.lstrip()
    for word in words:
        if not rest.startswith(word):
            raise ValueError(f"expected the word '{word}' in '# text' before '{rest[:20]}'")
        after = rest[len(word) :]
        rest = after.lstrip()
        spaces.append(after != rest or not rest)
    return spaces


def released_tag(tag: str, place: str, notes: Notes) -> str:
    """`tag` if it is O or one of the released types, "O" for a type that was left out."""
    prefix, _, label = tag.partition("-")
    if tag == "O" or (prefix in ("B", "I") and label in ENTITY_TYPES):
        return tag
    if prefix in ("B", "I") and label in UNRELEASED_TYPES:
        if prefix == "B":
            notes.add(f"entities of the unreleased type '{label}' read as O", place)
        return "O"
    expected = ", ".join(f"B-{label}, I-{label}" for label in ENTITY_TYPES)
    raise ValueError(f"entity tag '{tag}', expected O, {expected}")


def repair_iob(tags: Sequence[str], place: str, notes: Notes) -> list[str]:
    """Turn an I- that continues no entity of its type into a B-."""
    repaired: list[str] = []
    previous = "O"
    for index, tag in enumerate(tags):
        if tag.startswith("I-") and previous[2:] != tag[2:]:
            notes.add("entities that began with I- repaired", f"{place} word {index + 1} {tag}")
            tag = "B-" + tag[2:]
        repaired.append(tag)
        previous = tag
    return repaired


def entity_spans(tags: Sequence[str]) -> list[tuple[int, int, str]]:
    """(first word, word after the last, label) of each entity in valid IOB2 tags."""
    spans = []
    for start, tag in enumerate(tags):
        if tag.startswith("B-"):
            end = start + 1
            while end < len(tags) and tags[end].startswith("I-"):
                end += 1
            spans.append((start, end, tag[2:]))
    return spans


def project_tags(
    source: NamedSentence, words: Sequence[str], ends: set[int], place: str, notes: Notes
) -> list[str] | None:
    """Carry the tags of `source` over to `words`, another tokenization of the same characters.

    words: the tokenization to tag.
    ends: indices of words that no entity may run across: those that begin a sentence.
    RETURNS: one tag per word, "" if an entity begins or ends within it; None if the characters
        differ.
    """
    if "".join(source.words) != "".join(words):
        return None
    offsets = [0]
    for word in source.words:
        offsets.append(offsets[-1] + len(word))
    starts: dict[int, int] = {}
    stops: dict[int, int] = {}
    owner: list[int] = []  # word of each character
    for index, word in enumerate(words):
        starts[len(owner)] = index
        owner.extend([index] * len(word))
        stops[len(owner)] = index + 1
    tags = ["O"] * len(words)
    broken: set[int] = set()
    for first, last, label in entity_spans(source.tags):
        left, right = offsets[first], offsets[last]
        start, stop = starts.get(left), stops.get(right)
        if start is None or stop is None or ends & set(range(start + 1, stop)):
            text = " ".join(source.words[first:last])
            notes.add("entities that do not fit the words, left missing", f"{place} {text}")
            broken.update(range(owner[left], owner[right - 1] + 1))
        else:
            tags[start:stop] = [f"B-{label}"] + [f"I-{label}"] * (stop - start - 1)
    for index in broken:
        tags[index] = ""
    return tags


def join_entities(
    documents: Sequence[Document], named: dict[str, NamedSentence], path: Path, notes: Notes
) -> list[list[str]]:
    """Find the IOB2 tags for the words of each document, by sent_id.

    If the entity file lacks a sentence or has other words in it, the function compares the
    characters of the whole document, because a sentence may have been split or joined, and then
    the characters of the sentence. A token without a match gets the tag "": unknown, and not
    "no entity". All of it is counted in the notes of the documents.

    path: of the entity file, for messages.
    notes: of the file.
    Raises CorpusError if most sentences have no match.
    """
    ids = {sentence.sent_id for document in documents for sentence in document.sentences}
    notes.add_many("entity sentences that the treebank lacks", sorted(set(named) - ids))
    tags = [_join_document(document, named) for document in documents]
    _check_match(documents, named, path)
    return tags


def _check_match(
    documents: Sequence[Document], named: dict[str, NamedSentence], path: Path
) -> None:
    """Refuse an entity file that does not belong to the treebank, and warn of gaps."""
    ids = [sentence.sent_id for document in documents for sentence in document.sentences]
    unmatched = sum(document.notes.counts.get(UNMATCHED, 0) for document in documents)
    absent = [sent_id for sent_id in ids if sent_id not in named]
    problem = (
        f"{path}: {unmatched:,} of {len(ids):,} sentences of the treebank have no match in its "
        f"{len(named):,} sentences. {len(absent):,} sent_ids of the treebank are not in this file"
        + (f", such as '{absent[0]}'" if absent else "")
    )
    if 2 * unmatched > len(ids):
        raise CorpusError(
            f"{problem}. Give the entity file of the same split and release of the treebank."
        )
    if unmatched:
        msg.warn(f"{problem}. The entities of these sentences are unknown; no pipe learns them.")


def _join_document(document: Document, named: dict[str, NamedSentence]) -> list[str]:
    notes = document.notes
    whole = NamedSentence()
    same = True
    for sentence in document.sentences:
        source = named.get(sentence.sent_id, NamedSentence())
        notes.merge(source.notes)
        whole.words.extend(source.words)
        whole.tags.extend(source.tags)
        if source.words != sentence.words:
            same = False
            problem = "differ in words from" if source.words else "are missing from"
            notes.add(f"sentences that {problem} the entity file", sentence.sent_id)
    if same:
        return whole.tags
    words = [word for sentence in document.sentences for word in sentence.words]
    ends, position = set(), 0
    for sentence in document.sentences:
        ends.add(position)
        position += len(sentence.words)
    tags = project_tags(whole, words, ends, document.name, notes)
    if tags is not None:
        return tags
    tags = []
    for sentence in document.sentences:
        source = named.get(sentence.sent_id, NamedSentence())
        aligned = project_tags(source, sentence.words, set(), sentence.sent_id, notes)
        if aligned is None:
            notes.add(UNMATCHED, sentence.sent_id)
            aligned = [""] * len(sentence.words)
        tags.extend(aligned)
    return tags


def to_iob(tag: str) -> str:
    """A tag of IOB, IOB2, BILUO or BIOES in IOB. Raises ValueError for anything else."""
    prefix, dash, label = tag.partition("-")
    if tag == "O":
        return tag
    if prefix in _PREFIXES and dash and label:
        return f"{_PREFIXES[prefix]}-{label}"
    raise ValueError(f"entity tag '{tag}', expected O or a tag such as B-PER, I-PER")


def misc_tags(documents: Sequence[Document], path: Path) -> list[list[str]]:
    """IOB2 tags of the words of each document, from the MISC column of a file.

    If no word of the file has such a tag, the entities are unknown: all tags are "".
    """
    found = [
        any(key in misc for key in ENTITY_KEYS)
        for document in documents
        for sentence in document.sentences
        for misc in sentence.misc
    ]
    if not any(found):
        return [[""] * sum(len(s.words) for s in document.sentences) for document in documents]
    return [
        [tag for sentence in document.sentences for tag in _misc_tags(sentence, document, path)]
        for document in documents
    ]


def _misc_tags(sentence: Sentence, document: Document, path: Path) -> list[str]:
    tags = [next((m[key] for key in ENTITY_KEYS if key in m), "O") for m in sentence.misc]
    try:
        tags = [to_iob(tag) for tag in tags]
    except ValueError as error:
        raise CorpusError(f"{path}: sentence '{sentence.sent_id}' has the {error}") from error
    return repair_iob(tags, sentence.sent_id, document.notes)


def treebank_doc(
    document: Document, tags: Sequence[str], cats: dict[str, float], nlp: Language
) -> Doc:
    """Make one `Doc` of a document of a treebank. Its tokens are the syntactic words.

    tags: IOB2, one per word, "" for unknown.
    """
    words: list[str] = []
    spaces: list[bool] = []
    starts: list[bool | int | None] = []
    for sentence in document.sentences:
        if spaces and sentence.paragraph:
            spaces[-1] = True
        starts.extend([True] + [False] * (len(sentence.words) - 1))
        words.extend(sentence.words)
        spaces.extend(sentence.spaces)
    spaces[-1] = False
    doc = Doc(
        nlp.vocab,
        words=words,
        spaces=spaces,
        pos=[pos for sentence in document.sentences for pos in sentence.upos],
        tags=[tag for sentence in document.sentences for tag in sentence.xpos],
        sent_starts=starts,
        ents=list(tags),
    )
    doc.cats = cats
    return doc
