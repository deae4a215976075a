"""Pipes that step through a doc, one move after another: spaCy's `ner` and `parser`.

The student moves through a doc by its own predictions, and learns the teacher's scores of all moves
at the states that it reaches. Nobody knows these states beforehand, so the scores cannot be
recorded. But the teacher computes them from vectors of its tokens, which can. The rest of the
teacher's model is small and runs during training.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from spacy.ml.parser_model import ParserStepModel  # type: ignore[import-not-found]
from spacy.pipeline import TrainablePipe
from spacy.pipeline.transition_parser import Parser  # type: ignore[import-not-found]
from spacy.tokens import Doc
from spacy.training import Example
from thinc.api import Model, noop, set_dropout_rate

from spacy_distil.distillation.pipeline.heads.base import (
    Array,
    Field,
    Head,
    PipeSettings,
    Records,
    UnsuitedError,
)
from spacy_distil.distillation.pipeline.labels import match_labels, output_names
from spacy_distil.distillation.pipeline.losses import scores_kl
from spacy_distil.errors import ConfigError

# The type checker does not know spaCy's StateClass and its classes of gold annotation.
State: TypeAlias = Any
Gold: TypeAlias = Any
# A state to start from, and the token at which the next walk through the doc begins.
Walk: TypeAlias = tuple[State, int]
Floats: TypeAlias = NDArray[np.float32]
Ints: TypeAlias = NDArray[np.integer[Any]]

# If the teacher makes more moves in a doc, several walks begin at different places, side by side.
MAX_MOVES = 100
# The student may need more moves than its teacher from one start to the next.
_MAX_STEPS = 2 * MAX_MOVES


class TransitionHead(Head):
    """A `ner` or `parser`.

    It records the vectors of the teacher's token layer, and the moves that the teacher makes, by
    the teacher's numbers. The moves serve to cut long docs: they lead to further states to start
    from, so a long doc takes few steps.
    """

    student: Any
    teacher: Any

    def __init__(
        self, student: TrainablePipe, teacher: TrainablePipe, settings: PipeSettings
    ) -> None:
        super().__init__(student, teacher, settings)
        _check_pipe(student, "student")
        _check_pipe(teacher, "teacher")
        if teacher.model.layers[1].get_dim("nP") < 2:
            raise UnsuitedError(
                f"The model of the teacher's {teacher.name!r} has maxout_pieces = 1, with which "
                "spaCy predicts other scores than it has trained. Use a teacher with "
                f'maxout_pieces = 2, or set target = "silver" in '
                f"[distillation.pipes.{student.name}]."
            )
        self._teacher_moves = output_names(teacher)
        # For each move of the teacher its number among the student's moves: (n_moves,).
        self._numbers = match_labels(student.name, output_names(student), self._teacher_moves)
        width = teacher.model.layers[0].get_dim("nO")
        self.fields = {
            "tokens": Field("token", width, "float16"),
            "moves": Field("item", 1, "int16"),
        }

    # The teacher's side

    def record(self, docs: Sequence[Doc]) -> dict[str, list[Array]]:
        lengths = [len(doc) for doc in docs]
        width = self.fields["tokens"].width
        if not any(lengths):
            return {
                "tokens": [np.zeros((0, width), np.float32) for _ in docs],
                "moves": [np.zeros((0, 1), np.int16) for _ in docs],
            }
        layer = self.teacher.model.layers[0]
        tokens = layer.predict(list(docs))
        moves = self._make_moves(docs, tokens)
        return {
            "tokens": np.split(layer.ops.to_numpy(tokens), np.cumsum(lengths)[:-1]),
            "moves": [np.array(each, dtype=np.int16).reshape(-1, 1) for each in moves],
        }

    def _make_moves(self, docs: Sequence[Doc], tokens: Any) -> list[list[int]]:
        """Let the teacher process docs, and list its moves in each of them.

        tokens: vectors of the tokens of all docs, (n_tokens, width).
        """
        scorer = MoveScorer(tokens, noop(), self.teacher.model, is_train=False)
        moves: list[list[int]] = [[] for _ in docs]
        states = self.teacher.moves.init_batch(docs)
        active = [(i, state) for i, state in enumerate(states) if not state.is_final()]
        while active:
            states = [state for _, state in active]
            scores = scorer.predict(scorer.find_features(states))
            for (i, _), move in zip(active, self._choose(states, scores), strict=True):
                moves[i].append(move)
            self.teacher.transition_states(states, scores)
            active = [(i, state) for i, state in active if not state.is_final()]
        return moves

    def _choose(self, states: Sequence[State], scores: Floats) -> list[int]:
        """Choose the best valid move of each state, as `transition_states` does.

        scores: (n_states, n_moves).
        """
        system, names = self.teacher.moves, self._teacher_moves
        chosen = scores.argmax(axis=1).tolist()
        for i, state in enumerate(states):
            if not system.is_valid(state, names[chosen[i]]):
                ranked = np.argsort(-scores[i], kind="stable").tolist()
                valid = (move for move in ranked if system.is_valid(state, names[move]))
                # If no move is valid, spaCy gives up the doc. In a replay it does so again.
                chosen[i] = next(valid, chosen[i])
        return chosen

    # The student's side

    def _learn(
        self, examples: Sequence[Example], records: Records, soft: float, gold: float, drop: float
    ) -> float:
        docs = [example.predicted for example in examples]
        walks = self._find_walks(docs, records["moves"]) if soft else []
        states, golds, max_moves = self._find_gold(examples) if gold else ([], [], 0)
        if not walks and not states:
            return 0.0
        model, weight = self.student.model, self.settings.weight
        if soft:
            self._unmask_classes()
        set_dropout_rate(model, drop)
        scorer = MoveScorer(docs, model.layers[0], model, is_train=True)
        if soft and not drop:
            # spaCy drops a tenth of the layer below the scores, whatever the setting.
            scorer.attrs["dropout_rate"] = 0.0
        loss = 0.0
        if walks:
            loss += soft * self._learn_soft(scorer, walks, records["tokens"], weight * soft)
        if states:
            loss += gold * self._learn_gold(scorer, states, golds, max_moves, weight * gold)
        self._check_loss(loss)
        scorer.finish_steps(golds)
        # The scorer's callbacks refer to it. Without this, only the garbage collector would free
        # the arrays.
        scorer.clear_memory()
        return loss

    def _learn_soft(
        self, scorer: MoveScorer, walks: list[Walk], tokens: Sequence[Array], factor: float
    ) -> float:
        """Gather the gradient of the KL divergence at the states that the student reaches.

        First the student walks. Then both pipes score all its states at once.

        tokens: the teacher's vectors, (n_tokens, width) for each doc.
        factor: on the gradient.
        RETURNS: the divergence, summed over states.
        """
        vectors = self.teacher.model.ops.asarray2f(np.concatenate(tokens))
        teacher = MoveScorer(vectors, noop(), self.teacher.model, is_train=False)
        features, teacher_features = [], []
        for _ in range(_MAX_STEPS):
            states = [state for state, _ in walks]
            features.append(scorer.find_features(states))
            teacher_features.append(teacher.find_features(states))
            self.student.transition_states(states, scorer.predict(features[-1]))
            walks = [(state, end) for state, end in walks if _is_before(state, end)]
            if not walks:
                break
        scores, backprop = scorer.begin_update(np.concatenate(features))
        targets = np.empty_like(scores)
        targets[:, self._numbers] = teacher.predict(np.concatenate(teacher_features))
        teacher.clear_memory()
        # Moves that were added to a trained pipe and have not been trained.
        targets[:, self._numbers[_unseen(self.teacher)]] = -np.inf
        scores[:, _unseen(self.student)] = -np.inf
        loss, d_scores = scores_kl(scores, targets, self.settings.temperature)
        backprop(factor * d_scores)
        return loss

    def _learn_gold(
        self,
        scorer: MoveScorer,
        states: Sequence[State],
        golds: Sequence[Gold],
        max_moves: int,
        factor: float,
    ) -> float:
        """Gather the gradient of the annotation, as spaCy's `update` does.

        max_moves: the walk ends after `max_moves + 1` moves. 0 means the end of the docs.
        factor: on the gradient.
        RETURNS: the sum of squares of the scores' gradient, which spaCy reports as the loss.
        """
        loss, n_moves = 0.0, 0
        while states and not (max_moves and n_moves > max_moves):
            scores, backprop = scorer.begin_update(scorer.find_features(states))
            d_scores = self.student.get_batch_loss(states, golds, scores, None)
            loss += float((d_scores**2).sum())
            backprop(factor * d_scores)
            self.student.transition_states(states, scores)
            unfinished = [not state.is_final() for state in states]
            states = [state for state, is_open in zip(states, unfinished, strict=True) if is_open]
            golds = [each for each, is_open in zip(golds, unfinished, strict=True) if is_open]
            n_moves += 1
        return loss

    def _find_gold(self, examples: Sequence[Example]) -> tuple[list[State], list[Gold], int]:
        """Choose the states to start from.

        RETURNS (states, golds, max_moves): states, the annotation for each of them, and the
            greatest number of moves in a row, 0 for no limit.
        """
        student = self.student
        cut = student.cfg["update_with_oracle_cut_size"]
        max_moves = int(random.uniform(cut // 2, cut * 2)) if cut >= 1 else 0
        try:
            if max_moves:
                states, golds, _ = student._init_gold_batch(examples, max_length=max_moves)
            else:
                states, golds, _ = student.moves.init_gold_batch(examples)
        except KeyError as error:
            raise ConfigError(
                f"The annotation for {self.name!r} has a label that the teacher does not know. "
                f"{error.args[0]} Remove it from the training data, or let the pipe learn from "
                f'these alone: set target = "gold" in [distillation.pipes.{self.name}].'
            ) from error
        return states, golds, max_moves

    def _find_walks(self, docs: Sequence[Doc], moves: Sequence[Array]) -> list[Walk]:
        """Choose where the student starts and ends.

        It starts at the beginning of each doc, and after every MAX_MOVES moves of the teacher.

        moves: by the teacher's numbers, (n_moves, 1) for each doc.
        """
        walks: list[Walk] = []
        for state, teacher_moves in zip(self.student.moves.init_batch(docs), moves, strict=True):
            numbers = self._numbers[teacher_moves[:, 0]]
            starts = [state]
            for begin in range(MAX_MOVES, len(numbers), MAX_MOVES):
                starts.append(starts[-1].copy())
                self._replay(starts[-1], numbers[begin - MAX_MOVES : begin])
            # If all tokens are on the stack, none is the next one.
            ahead = [start.B(0) for start in starts[1:]]
            ends = [token if token > 0 else state.length for token in ahead] + [state.length]
            walks += [walk for walk in zip(starts, ends, strict=True) if _is_before(*walk)]
        return walks

    def _replay(self, state: State, moves: Ints) -> None:
        """Make moves from a state.

        spaCy makes one move for each item of a list of states, one after another, so a list that
        repeats a state makes several moves in one call. None of them may go beyond the end: with n
        tokens ahead, a state is at least n moves away from it.

        moves: by the student's numbers, (n_moves,).
        """
        while len(moves) and not state.is_final():
            part = moves[: max(state.buffer_length(), 1)]
            moves = moves[len(part) :]
            scores = np.zeros((len(part), self.student.moves.n_moves), dtype=np.float32)
            scores[np.arange(len(part)), part] = 1
            self.student.transition_states([state] * len(part), scores)

    def _unmask_classes(self) -> None:
        """Let the student learn moves that were added to it, if the teacher knows them."""
        known = np.delete(self._numbers, _unseen(self.teacher))
        self.student.model.attrs["unseen_classes"].difference_update(known.tolist())


class MoveScorer(ParserStepModel):
    """spaCy's scorer of moves, for states that are given by their features.

    The features of a state are all that the scorer reads: the indices in the batch of the tokens
    around it, -1 for no token, (n_states, n_features). They do not change when the state moves on,
    so the scorer can take states of many steps at once.

    inputs: the input of `tok2vec`.
    tok2vec: makes the vectors of all tokens, (n_tokens, width).
    model: the model of a pipe. Its layers above `tok2vec` are used.
    is_train: whether to prepare for `finish_steps`.
    """

    def __init__(self, inputs: Any, tok2vec: Model, model: Model, *, is_train: bool) -> None:
        super().__init__(
            inputs,
            [tok2vec, *model.layers[1:]],
            has_upper=model.attrs["has_upper"],
            unseen_classes=model.attrs["unseen_classes"],
            train=is_train,
        )

    def find_features(self, states: Sequence[State]) -> Ints:
        """Return the features of states that are not final, (n_states, n_features)."""
        return super().get_token_ids(states)

    def get_token_ids(self, features: Ints) -> Ints:
        # spaCy calls this with the input of the model, which is features already.
        return features


def _check_pipe(pipe: Any, owner: str) -> None:
    if not isinstance(pipe, Parser):
        raise UnsuitedError(
            f"The {owner}'s {pipe.name!r} is a {type(pipe).__name__}, expected spaCy's 'ner' or "
            "'parser': soft targets need the same kind of pipe on both sides. Set target = "
            f'"silver" or "gold" in [distillation.pipes.{pipe.name}].'
        )
    if pipe.cfg["beam_width"] != 1:
        raise UnsuitedError(
            f"The {owner}'s {pipe.name!r} has beam_width = {pipe.cfg['beam_width']}, but soft "
            "targets are for greedy search. Set beam_width = 1, or target = "
            f'"silver" in [distillation.pipes.{pipe.name}].'
        )


def _is_before(state: State, end: int) -> bool:
    """Tell whether the state has moves to make before it reaches a token."""
    return not state.is_final() and state.B(0) < end


def _unseen(pipe: Any) -> list[int]:
    """List the moves that were added to a trained pipe and have not been trained."""
    return sorted(pipe.model.attrs["unseen_classes"])
