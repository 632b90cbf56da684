"""Headline numbers with their intervals."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from cggm.reports.tables import number


@dataclass(frozen=True)
class Card:
    """One headline number.

    Args:
        name: What it is.
        value: The number.
        interval: Ends of its 95 % interval, ``None`` where there is none.
        digits: Behind the point.
        unit: Such as ``"mm"``.
    """

    name: str
    value: float | None
    interval: tuple[float, float] | None = None
    digits: int = 3
    unit: str = ""


def cards(shown: Sequence[Card], note: str) -> Markup:
    """The numbers side by side.

    Args:
        shown: The most important first.
        note: What they are of, and how the intervals come about.
    """
    items = Markup().join(_card(card) for card in shown)
    return Markup('<dl class="cards">{}</dl><p class="note">{}</p>').format(items, note)


def _card(card: Card) -> Markup:
    unit = f" {card.unit}" if card.unit else ""
    exact = "" if card.value is None else repr(card.value)
    return Markup(
        '<div class="card"><dt>{}</dt><dd><span class="value" data-v="{}">{}</span>{}'
        '<div class="interval">{}</div></dd></div>'
    ).format(card.name, exact, number(card.value, card.digits), unit, _interval(card))


def _interval(card: Card) -> str:
    if card.interval is None or not all(map(math.isfinite, card.interval)):
        return ""
    low, high = (number(end, card.digits) for end in card.interval)
    return f"95 %: {low} to {high}"
