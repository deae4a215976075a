"""Explanations as HTML: the text, with a colour behind each token."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup, escape

if TYPE_CHECKING:
    from spacy_distil.trust.explanations.explanation import Explanation

# Blue and orange differ for colour-blind readers, too. They are mixed with whatever is behind them,
# so the text keeps its own colour, in light and in dark.
FOR, AGAINST = "45, 120, 230", "235, 120, 20"
_STRONGEST = 0.6
# Characters of a token or an entity in a title.
_LONGEST = 80

_STYLE = """
:root { color-scheme: light dark; }
body { margin: 0 auto; max-width: 60rem; padding: 1rem; color: #1a1a1a; background: #fff;
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.4rem; }
h2 { font-size: 1rem; margin: .5rem 0 0; }
section { border-top: 1px solid #8886; padding: .5rem 0 1rem; }
@media (prefers-color-scheme: dark) { body { color: #e8e8e8; background: #16181c; } }
"""


def visible(text: str) -> str:
    """Replace control characters, which HTML and terminals do not show or obey, by pictures.

    Line breaks and tabs stay.
    """
    return "".join(c if c in "\n\r\t" else _picture(c) for c in text)


def _picture(c: str) -> str:
    if c < " ":
        return chr(0x2400 + ord(c))
    if c == "\x7f":
        return "\u2421"
    # Controls of terminals, and marks that turn the direction of what follows.
    is_control = "\x80" <= c <= "\x9f" or "\u202a" <= c <= "\u202e" or "\u2066" <= c <= "\u2069"
    return "\N{SYMBOL FOR SUBSTITUTE FORM TWO}" if is_control else c


def describe(explanation: Explanation) -> str:
    """Say in a line what is explained: 'cats:travel (textcat): p = 0.98'."""
    target = explanation.target
    is_named = not target.label or target.what == f"cats:{target.label}"
    label = "" if is_named else f" = {target.label}"
    what = target.what if len(target.what) <= _LONGEST else f"{target.what[:_LONGEST]}…"
    score = explanation.score
    known = "no tokens" if np.isnan(score) else f"p = {explanation.probability:.3g}"
    return f"{what}{label} ({target.pipe}): {known}, {explanation.method}"


def to_html(explanation: Explanation) -> str:
    """Render an explanation as a piece of HTML."""
    values = explanation.attributions
    largest = float(np.abs(values).max(initial=0)) or 1.0
    target = explanation.target
    tokens = Markup("").join(
        _token(
            token.text,
            float(value) / largest,
            float(value),
            is_target=target.start <= i < target.end,
        )
        + escape(token.whitespace_)
        for i, (token, value) in enumerate(zip(explanation.doc, values, strict=True))
    )
    return str(
        Markup(
            '<div class="explanation"><div style="font-size: .9em">{what}: {key}</div>'
            '<div dir="auto" style="white-space: pre-wrap; line-height: 2; '
            'overflow-wrap: anywhere">{tokens}</div></div>'
        ).format(what=visible(describe(explanation)), key=_key(), tokens=tokens)
    )


def to_page(title: str, explanations: Iterable[tuple[str, Sequence[Explanation]]]) -> str:
    """Render the explanations of several docs as a page that needs no other file.

    explanations: with the name of the doc. A doc without any is left out.
    """
    sections = Markup("\n").join(
        Markup("<section><h2>{}</h2>{}</section>").format(
            name, Markup("\n").join(Markup(to_html(each)) for each in own)
        )
        for name, own in explanations
        if own
    )
    return str(
        Markup(
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            "<title>{title}</title>\n<style>{style}</style>\n</head>\n<body>\n<h1>{title}</h1>\n"
            "{sections}\n</body>\n</html>\n"
        ).format(title=title, style=Markup(_STYLE), sections=sections)
    )


def _token(text: str, share: float, value: float, *, is_target: bool) -> Markup:
    style = ""
    if share:
        colour = FOR if share > 0 else AGAINST
        style = f"background: rgba({colour}, {_STRONGEST * abs(share):.3f}); border-radius: .2em; "
    if is_target:
        style += "outline: 2px solid currentColor; outline-offset: 1px; border-radius: .2em; "
    if not style:
        return escape(visible(text))
    return Markup('<span style="{}" title="{:+.3g}">{}</span>').format(
        style.strip(), value, visible(text)
    )


def _key() -> Markup:
    parts = [
        Markup('<span style="background: rgba({}, {})">{}</span>').format(colour, _STRONGEST, word)
        for colour, word in ((FOR, "for"), (AGAINST, "against"))
    ]
    return Markup(" ").join(parts)
