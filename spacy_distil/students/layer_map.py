"""Map layers of a student to the teacher's layers that they learn from."""

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
    """Map layers of a student to layers of its teacher. 1 is the lowest layer, 0 the embeddings.

    setting: "last" maps the last layer to the last; "even" maps each layer to the one at the same
        relative height in the teacher, but not below layer 1; or pairs [student's layer, teacher's
        layer].
    n_student, n_teacher: number of layers.
    name: of the setting, for errors.
    lowest: lowest layer allowed: 0, or 1 if embeddings are of no use.
    RETURNS: pairs (student's layer, teacher's layer).
    Raises ConfigError for any other setting, and for layers that do not exist.
    """
    if setting == "last":
        return [(n_student, n_teacher)]
    if setting == "even":
        return [(i, max(1, round(i * n_teacher / n_student))) for i in range(1, n_student + 1)]
    start = f"{name} = {setting!r}: "
    if isinstance(setting, str) or not setting or not all(map(_is_pair, setting)):
        raise ConfigError(
            f'{start}expected "last", "even", or a list of pairs [layer of the student, layer of '
            "the teacher]."
        )
    for pair in setting:
        for whose, layer, n_layers in zip(
            ("student", "teacher"), pair, (n_student, n_teacher), strict=True
        ):
            if not lowest <= layer <= n_layers:
                embeddings = "; 0 is its embeddings" if lowest == 0 else ""
                raise ConfigError(
                    f"{start}the {whose} has no layer {layer}. Its layers are 1 to {n_layers}"
                    f"{embeddings}."
                )
    return [(student_layer, teacher_layer) for student_layer, teacher_layer in setting]


def _is_pair(pair: Any) -> bool:
    return isinstance(pair, Sequence) and len(pair) == 2 and all(isinstance(i, int) for i in pair)
