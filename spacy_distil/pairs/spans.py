"""The most probable answers, from the logits of their begins and ends."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# The logit of a token without pieces, which neither begins nor ends an answer.
IMPOSSIBLE = -1e4


@dataclass(frozen=True)
class Spans:
    """Answers to a question, the most probable first.

    spans: first token, and the one behind the last, of each.
    probabilities: of each among all spans, and no answer if that is possible.
    no_answer: how much larger the score of no answer is than the best span's; minus infinity if
        there is always an answer.
    """

    spans: list[tuple[int, int]]
    probabilities: list[float]
    no_answer: float


def find_spans(logits: np.ndarray, *, n_best: int, max_tokens: int, may_be_missing: bool) -> Spans:
    """Find the best spans. The score of a span is the sum of the logits of its begin and its end.

    logits: (1 + n_tokens, 2), see `QAHead`. Tokens with the logit IMPOSSIBLE are in no answer's
        begin or end.
    n_best: number of spans.
    max_tokens: most tokens of a span.
    may_be_missing: whether there may be no answer.
    """
    scores = logits.astype(np.float64)
    null = float(scores[0].sum())
    begins, ends = scores[1:].T
    n = len(begins)
    lengths = range(min(max_tokens, n))
    # Spans of one length after the other, with their first tokens.
    tried = [begins[: n - length] + ends[length:] for length in lengths]
    values = np.concatenate([np.zeros(0), *tried])
    firsts = np.concatenate([np.zeros(0, dtype=np.int64), *(np.arange(len(t)) for t in tried)])
    widths = np.repeat(np.arange(len(tried)) + 1, list(map(len, tried)))
    possible = values > IMPOSSIBLE / 2  # a sum with one of them is below, any other above
    values, firsts, widths = values[possible], firsts[possible], widths[possible]
    if not len(values):
        return Spans([], [], np.inf)
    compared = np.append(values, null) if may_be_missing else values
    total = compared.max() + np.log(np.exp(compared - compared.max()).sum())
    best = np.argpartition(-values, min(n_best, len(values)) - 1)[:n_best]
    # The shorter, and then the earlier, of equal spans.
    best = best[np.lexsort((firsts[best], widths[best], -values[best]))]
    return Spans(
        [(int(firsts[i]), int(firsts[i] + widths[i])) for i in best],
        [float(np.exp(values[i] - total)) for i in best],
        null - float(values[best[0]]) if may_be_missing else -np.inf,
    )
