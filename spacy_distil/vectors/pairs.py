"""Related texts as training data: pairs of texts, with a score or without.

An Example is one text. Two texts are related if their reference docs have the same group in
`doc.user_data`. With a score they are a pair whose similarity is known. Without one, they are more
similar than texts of different groups. A batch needs both texts, so `Pairs` and `BatchPairs` belong
together.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from spacy.language import Language
from spacy.training import Example

from spacy_distil.errors import CorpusError

# In `doc.user_data` of a reference: {"group": ..., "role": ..., "score": ...}.
RELATION = "distil_vectors.relation"
# In `doc.user_data`: the vector of the doc. It survives serialization, while hooks do not.
VECTOR = "distil_vectors.vector"
Role = Literal["query", "document"]


@dataclass(frozen=True)
class Relation:
    """Related texts of a batch.

    group: name of the group.
    members: indices of the examples.
    score: cosine that two texts should have; None for texts that are similar.
    """

    group: str
    members: tuple[int, ...]
    score: float | None = None


def relate(
    example: Example, group: str, *, role: Role | None = None, score: float | None = None
) -> Example:
    """Note in the reference of an Example that its text belongs to a group. RETURNS: it."""
    example.reference.user_data[RELATION] = {"group": group, "role": role, "score": score}
    return example


def read_relation(example: Example) -> dict[str, Any] | None:
    """Read what `relate` noted."""
    found: dict[str, Any] | None = example.reference.user_data.get(RELATION)
    return found


def read_relations(examples: Sequence[Example]) -> list[Relation]:
    """Find the related texts of a batch: the groups of which it has two texts or more."""
    members: dict[str, list[int]] = {}
    scores: dict[str, float | None] = {}
    for i, example in enumerate(examples):
        relation = read_relation(example)
        if relation is not None and len(example.predicted):
            members.setdefault(relation["group"], []).append(i)
            scores[relation["group"]] = relation.get("score")
    found = []
    for group, own in members.items():
        if scores[group] is None:
            found.append(Relation(group, tuple(own)))
        elif len(own) > 1:
            found.append(Relation(group, (own[0], own[1]), scores[group]))
    return found if any(len(each.members) > 1 for each in found) else []


def Pairs(path: str | Path | None, limit: int = 0) -> Callable[[Language], Iterator[Example]]:
    """Read pairs of texts for `distil_vectors`, from JSON lines.

        {"text": "Where do I ...?", "other": "You find it in ..."}
        {"text": "A man plays.", "other": "Somebody plays.", "score": 0.9}

    Pairs with the same other text are one group. A score is the cosine that the two should have.

    path: .jsonl file.
    limit: only the first N pairs; 0 for all.
    """

    def read(nlp: Language) -> Iterator[Example]:
        if path is None:
            raise CorpusError("There are no pairs: set the path of spacy-distil.Pairs.v1.")
        expected = '{"text": "...", "other": "..."}, perhaps with a "score" from -1 to 1'
        records = read_records(Path(path), _is_scored, expected)
        for number, record in enumerate(islice(records, limit or None)):
            score = record.get("score")
            group = record["other"] if score is None else f"{number}"
            for role, key in (("query", "text"), ("document", "other")):
                doc = nlp.make_doc(record[key])
                example = Example(doc, nlp.make_doc(record[key]))
                yield relate(example, group, role=role, score=score)  # type: ignore[arg-type]

    return read


def _is_scored(record: dict[str, Any]) -> bool:
    score = record.get("score")
    return score is None or -1 <= float(score) <= 1


def read_records(
    path: Path, is_right: Callable[[dict[str, Any]], bool], expected: str
) -> Iterator[dict[str, Any]]:
    """Read a file of JSON lines, each a pair of texts. Empty lines are ignored.

    is_right: whether the other keys of a record are as they should be. An error says no, too.
    expected: how a line looks, for the error.
    Raises CorpusError, which names the line, for one that is no pair.
    """
    for number, line in _read_lines(path):
        line = line.strip()
        if not line:
            continue
        try:
            record = json.loads(line)
            whole = isinstance(record["text"], str) and isinstance(record["other"], str)
            whole = whole and is_right(record)
        except (ValueError, KeyError, TypeError, AttributeError):
            whole = False
        if not whole:
            raise CorpusError(f"{path}, line {number}: {line[:80]!r}. Expected {expected}.")
        yield record


def _read_lines(path: Path) -> Iterator[tuple[int, str]]:
    from spacy_distil.text.readers import read_lines  # only where a file is read

    try:
        yield from read_lines(path)
    except (OSError, CorpusError) as error:
        raise CorpusError(f"The pairs in {path} cannot be read: {error}") from error


def BatchPairs(size: int = 64) -> Callable[[Iterable[Example]], Iterator[list[Example]]]:
    """Make batches in which the texts of a pair are together, whatever order they come in.

    size: texts in a batch; a group may exceed it.
    """

    def batch(examples: Iterable[Example]) -> Iterator[list[Example]]:
        groups: dict[Any, list[Example]] = {}
        for number, example in enumerate(examples):
            relation = read_relation(example)
            key: Any = number if relation is None else relation["group"]
            groups.setdefault(key, []).append(example)
        batch: list[Example] = []
        for own in groups.values():
            if batch and len(batch) + len(own) > size:
                yield batch
                batch = []
            batch += own
        if batch:
            yield batch

    return batch
