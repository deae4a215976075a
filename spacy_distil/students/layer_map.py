"""Which layer of a student learns which layer of its teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from spacy_distil.errors import ConfigError


def layer_map(
    setting: str | Sequence[Sequence[int]],
    n_student: int,
    n_teacher: int,
    *,
    name: str,
    lowest: int = 0,
) -> list[tuple[int, int]]:
    """Pairs of their numbers, where 1 is the lowest layer and 0 the embeddings.

    setting: "last", the last from the last; "even", each of the student's from the one as far up in
        the teacher, which is never below its first layer; or pairs [student's, teacher's].
    n_student, n_teacher: number of layers of the encoders.
    name: of the setting, for errors.
    lowest: 0, or 1 where embeddings are of no use.

    Raises ConfigError for anything else, and for layers that are not there.
    """
    if setting == "last":
        return [(n_student, n_teacher)]
    if setting == "even":
        return [(i, max(1, round(i * n_teacher / n_student))) for i in range(1, n_student + 1)]
    wrong = f"{name} = {setting!r}: "
    if isinstance(setting, str) or not setting or not all(map(_is_pair, setting)):
        raise ConfigError(
            f'{wrong}expected "last", "even", or a list of pairs [layer of the student, layer of '
            "the teacher]."
        )
    for pair in setting:
        for whose, layer, n_layers in zip(
            ("student", "teacher"), pair, (n_student, n_teacher), strict=True
        ):
            if not lowest <= layer <= n_layers:
                embeddings = "; 0 is its embeddings" if lowest == 0 else ""
                raise ConfigError(
                    f"{wrong}the {whose} has no layer {layer}. Its layers are 1 to {n_layers}"
                    f"{embeddings}."
                )
    return [(own, other) for own, other in setting]


def _is_pair(pair: Any) -> bool:
    return isinstance(pair, Sequence) and len(pair) == 2 and all(isinstance(i, int) for i in pair)
