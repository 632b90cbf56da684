"""Tables of a report: plain, sortable, and as heat maps."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from cggm.display import Table, number
from cggm.runs import Metric


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


def metric_card(
    metric: Metric, value: float | None, interval: tuple[float, float] | None = None
) -> Card:
    """A headline number named and written as its metric says.

    Args:
        metric: Its record.
        value: The number, ``None`` where it is undefined.
        interval: Ends of its 95 % interval, ``None`` where there is none.
    """
    return Card(metric.label, value, interval, metric.digits, metric.unit)


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


_LONG = 25  # rows that are shown without scrolling


@dataclass(frozen=True)
class Column:
    """A column; of text where a value is a string.

    Args:
        name: Its heading.
        values: One per row; a dash stands for ``None`` and NaN.
        digits: Behind the point.
        heat: Whether values are shaded between the ends of ``scale``.
        scale: Values of the lightest and of the darkest shade; those of the column if ``None``.
    """

    name: str
    values: Sequence[float | str | None]
    digits: int = 3
    heat: bool = False
    scale: tuple[float, float] | None = None


def plain_table(caption: str, columns: Sequence[Column]) -> Markup:
    """A table whose first column heads its rows.

    Args:
        caption: What it shows.
        columns: Of equal length.
    """
    heads = Markup().join(
        Markup('<th scope="col" class="{}">{}</th>').format(_class(column), column.name)
        for column in columns
    )
    return _table(caption, heads, columns, "")


def sortable_table(caption: str, columns: Sequence[Column], *, sorted_by: int) -> Markup:
    """A table that a click on a heading sorts.

    Args:
        caption: What it shows.
        columns: Of equal length, the rows in ascending order of one of them.
        sorted_by: Which one.
    """
    heads = Markup().join(
        Markup('<th scope="col"{}><button type="button">{}</button></th>').format(
            Markup(' aria-sort="ascending"') if i == sorted_by else "", c.name
        )
        for i, c in enumerate(columns)
    )
    return _table(caption, heads, columns, "sortable")


def marked_table(table: Table) -> Markup:
    """A table of texts in which the best ones are marked, with its notes below it.

    Args:
        table: What it shows.
    """
    heads = Markup().join(Markup('<th scope="col">{}</th>').format(name) for name in table.heads)
    cells = [
        [
            Markup('<th scope="row">{}</th>').format(row[0].text),
            *(Markup('<td class="{}">{}</td>').format(cell.mark, cell.text) for cell in row[1:]),
        ]
        for row in table.rows
    ]
    note = Markup('<p class="note">{}</p>').format(" ".join(table.notes))
    return _framed(table.title, heads, cells, "") + (note if table.notes else Markup())


def _table(caption: str, heads: Markup, columns: Sequence[Column], kind: str) -> Markup:
    cells = [_cells(column, first=i == 0) for i, column in enumerate(columns)]
    return _framed(caption, heads, [*zip(*cells, strict=True)], kind)


def _framed(caption: str, heads: Markup, cells: Sequence[Sequence[Markup]], kind: str) -> Markup:
    rows = Markup("\n").join(Markup("<tr>{}</tr>").format(Markup().join(row)) for row in cells)
    return Markup(
        '<div class="scroll{4}" tabindex="0" role="region" aria-label="{0}"><table class="{1}">'
        "<caption><span>{0}</span></caption><thead><tr>{2}</tr></thead><tbody>{3}</tbody></table>"
        "</div>"
    ).format(caption, kind, heads, rows, " long" if len(cells) > _LONG else "")


def _cells(column: Column, *, first: bool) -> list[Markup]:
    known = [v for v in column.values if isinstance(v, int | float) and math.isfinite(v)]
    low, high = column.scale or (min(known, default=0.0), max(known, default=1.0))
    tag = Markup('th scope="row"') if first else Markup("td")
    end = "th" if first else "td"
    return [
        Markup("<{}{}>{}</{}>").format(
            tag, _attributes(value, (low, high) if column.heat else None), _text(value, column), end
        )
        for value in column.values
    ]


def _class(column: Column) -> str:
    return "text" if any(isinstance(value, str) for value in column.values) else ""


def _attributes(value: float | str | None, scale: tuple[float, float] | None) -> Markup:
    if isinstance(value, str):
        return Markup(' class="text"')
    if value is None or not math.isfinite(value):
        return Markup()
    exact = Markup(' data-v="{!r}"').format(value)
    if scale is None:
        return exact
    share = (value - scale[0]) / (scale[1] - scale[0] or 1.0)
    return exact + Markup(' class="heat" style="--v:{:.2f}"').format(min(1.0, max(0.0, share)))


def _text(value: float | str | None, column: Column) -> str:
    return value if isinstance(value, str) else number(value, column.digits)
