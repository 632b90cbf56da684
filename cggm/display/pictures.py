"""Pictures of charts: PNG, PDF and SVG files, and SVG in the colors of the page that shows it."""

import io
import re
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from cggm.display.charts import INK, Chart, IntervalChart, LineChart, ScatterChart
from cggm.display.drawing import (
    COLORS,
    FAINT,
    GRID,
    PAGE,
    STYLE,
    WIDTH,
    cloud_handles,
    draw,
    height_of,
    line_handles,
    verdict_handles,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

_DPI = 150
_FONTS: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "cggm", "pdf.fonttype": 42}
_UNDATED: dict[str, Any] = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}
"""What makes the same picture the same file."""
_LETTER = 6.6  # points that a letter of a name is wide, roughly
_WARNING = "#7a4a00"
_POINTS = 72  # of an inch
_ABOVE, _LEGEND = 24, 28  # points for the title of a chart and for the common legend
_LONGEST_NAME = 19  # characters on a page; the rest of the width is for the values
_SVG = "{http://www.w3.org/2000/svg}"
_VARIABLES = {
    **{color.lower(): f"var(--c{i})" for i, color in enumerate(COLORS[:INK])},
    COLORS[INK]: "var(--text)",
    FAINT: "var(--faint)",
    GRID: "var(--grid)",
    PAGE: "var(--page)",
}
"""Colors of the drawing to the variables of a page's style sheet, light or dark."""


def picture_file(
    charts: Sequence[Chart], *, columns: int = 3, head: str = "", kind: str = "png"
) -> bytes:
    """A file of charts side by side, with their titles and one legend.

    Args:
        charts: At least one.
        columns: Charts in a row.
        head: Set above all charts, and kept in a PNG file as its description.
        kind: ``png``, or for papers ``pdf`` or ``svg``, whose text stays text.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    columns = min(columns, len(charts))
    rows = -(-len(charts) // columns)
    width = max(columns * max(map(_width_of, charts)), 1.2 * WIDTH)
    height = rows * (max(map(height_of, charts)) + _ABOVE) + _LEGEND
    data = io.BytesIO()
    with mpl.rc_context({**STYLE, **_FONTS}):
        figure = Figure(figsize=(width / _POINTS, height / _POINTS), layout="constrained")
        for index, chart in enumerate(charts):
            axes = figure.add_subplot(rows, columns, index + 1)
            draw(chart, axes)
            _set_title(axes, chart)
            if isinstance(chart, LineChart) and chart.named:
                axes.legend(handles=line_handles(chart.known), fontsize=9)
        _add_legend(figure, charts, head)
        metadata = {"Description": head} if head and kind == "png" else {}
        figure.savefig(data, dpi=_DPI, format=kind, metadata=_UNDATED.get(kind, metadata))
    return data.getvalue()


def svg(chart: Chart) -> str:
    """An SVG picture to be put into a page.

    Its colors are the variables of the page's style sheet and its text is text in the page's font,
    so that both follow a dark mode; the name of a line or of a row shows up under the pointer.

    Args:
        chart: What it shows; its words are what a screen reader reads.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    data = io.StringIO()
    with mpl.rc_context({**STYLE, "svg.fonttype": "none"}):
        size = (WIDTH / _POINTS, height_of(chart) / _POINTS)
        figure = Figure(figsize=size, layout="constrained", frameon=False)
        axes = figure.add_subplot()
        axes.patch.set_visible(False)
        draw(chart, axes, longest_name=_LONGEST_NAME)
        figure.savefig(data, format="svg", metadata={"Date": None})
    root = ElementTree.fromstring(data.getvalue())
    picture = ElementTree.Element(
        "svg", {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": chart.words}
    )
    names = _names(chart)
    for group in root.findall(f"{_SVG}g"):
        _copy(group, picture, names, {})
    return ElementTree.tostring(picture, encoding="unicode")


def _width_of(chart: Chart) -> float:
    """Points, with those of the names beside its rows."""
    names = [] if not isinstance(chart, IntervalChart) or chart.upright else chart.intervals
    return WIDTH + _LETTER * max((len(interval.name) for interval in names), default=0)


def _set_title(axes: "Axes", chart: Chart) -> None:
    """The title, and the note below it in small type."""
    note = textwrap.fill(chart.note, 72)
    lines = note.count("\n") + bool(note)
    axes.set_title(textwrap.fill(chart.title, 46), pad=6 + 11 * lines)
    axes.annotate(
        note,
        (0, 1),
        (0, 4),
        xycoords="axes fraction",
        textcoords="offset points",  # as the title's pad, so that they keep apart at any height
        fontsize=8.5,
        color=FAINT,
        va="bottom",
    )


def _add_legend(figure: "Figure", charts: Sequence[Chart], head: str) -> None:
    """One legend for all charts: above lines, below what has verdicts or kinds of points.

    What stands above all is the title of the legend where there is one, for a title of the figure
    would be drawn over it.
    """
    style = {"size": 11, "weight": "bold"}
    shared = [c for c in charts if isinstance(c, LineChart) and not c.named]
    lines = [line for chart in shared for line in chart.known if line.color != INK]
    below = [
        *verdict_handles([c for c in charts if isinstance(c, IntervalChart)]),
        *cloud_handles([c for c in charts if isinstance(c, ScatterChart)]),
    ]
    if lines:
        handles = line_handles(lines)
        legend = figure.legend(
            handles=handles,
            loc="outside upper center",
            ncols=_columns(figure, handles),
            title=head or None,
            title_fontproperties=style,
        )
        legend.get_title().set_color(_WARNING)
    else:
        figure.suptitle(head, fontproperties=style, color=_WARNING)
    if below:
        figure.legend(handles=below, loc="outside lower center", ncols=_columns(figure, below))


def _columns(figure: "Figure", handles: Sequence["Line2D"]) -> int:
    """How many entries of a legend fit beside each other."""
    longest = max(len(str(handle.get_label())) for handle in handles)
    room = figure.get_figwidth() * _POINTS / (_LETTER * longest + 50)
    return max(1, min(len(handles), int(room)))


def _names(chart: Chart) -> dict[str, str]:
    """Identifiers that the drawing gave to groups, to the names that they show."""
    if isinstance(chart, LineChart):
        return {f"line {line.name}": line.name for line in chart.known}
    if isinstance(chart, IntervalChart):
        return {f"row {interval.name}": interval.name for interval in chart.intervals}
    return {}


def _copy(
    source: ElementTree.Element,
    target: ElementTree.Element,
    names: dict[str, str],
    symbols: dict[str, ElementTree.Element],
) -> None:
    """Copy what is drawn without identifiers, of which several pictures of a page had the same.

    Args:
        source: A group that matplotlib wrote.
        target: What its content is added to.
        names: See :func:`_names`.
        symbols: Shapes of markers by identifier, which grow as they are met.
    """
    name = names.get(source.get("id", ""))
    if name is not None:
        target = ElementTree.SubElement(target, "g")
        ElementTree.SubElement(target, "title").text = name
    uses = [element for element in source if element.tag == f"{_SVG}use"]
    if uses:
        _add_markers(uses, symbols, target)
    for element in source:
        kind = element.tag.removeprefix(_SVG)
        if kind == "defs":
            symbols |= {e.attrib["id"]: e for e in element if e.tag == f"{_SVG}path"}
        elif kind == "g":
            _copy(element, target, names, symbols)
        elif kind == "path":
            style = _style(element)
            ElementTree.SubElement(target, "path", {"d": _short(element.attrib["d"])} | style)
        elif kind == "text":
            _add_text(element, target)


def _add_markers(
    uses: Sequence[ElementTree.Element],
    symbols: dict[str, ElementTree.Element],
    target: ElementTree.Element,
) -> None:
    """Filled circles become one path of points with round ends, which takes much less space."""
    symbol = symbols[uses[0].attrib["{http://www.w3.org/1999/xlink}href"].removeprefix("#")]
    places = [(float(use.attrib["x"]), float(use.attrib["y"])) for use in uses]
    css, outline = _declarations(uses[0]), _short(symbol.attrib["d"])
    fill = css.get("fill", "none")
    if "C" in outline and fill not in ("none", PAGE):
        radius = abs(float(symbol.attrib["d"].split()[2]))
        points = "".join(f"M{x:.1f} {y:.1f}h0" for x, y in places)
        pen = f"stroke:{_color(fill)};stroke-width:{2 * radius:.1f};stroke-linecap:round"
        opacity = f";opacity:{css['fill-opacity']}" if "fill-opacity" in css else ""
        ElementTree.SubElement(target, "path", {"d": points, "style": pen + opacity})
        return
    for x, y in places:
        shape = {"d": outline, "transform": f"translate({x:.1f} {y:.1f})"}
        ElementTree.SubElement(target, "path", shape | _style(uses[0]))


def _add_text(element: ElementTree.Element, target: ElementTree.Element) -> None:
    css = _declarations(element)
    found = re.findall(r"-?[\d.]+", element.get("transform", ""))
    x, y = element.get("x"), element.get("y")
    attributes = {"text-anchor": css.get("text-anchor", "start")}
    if x is not None and y is not None:
        attributes |= {"x": f"{float(x):.1f}", "y": f"{float(y):.1f}"}
    if found and float(found[0]):
        attributes["transform"] = element.attrib["transform"]
    if css.get("fill") == COLORS[INK]:
        attributes["class"] = "name"
    ElementTree.SubElement(target, "text", attributes).text = element.text


def _declarations(element: ElementTree.Element) -> dict[str, str]:
    parts = (part.partition(":") for part in element.get("style", "").split(";") if part.strip())
    return {name.strip(): value.strip() for name, _, value in parts}


def _style(element: ElementTree.Element) -> dict[str, str]:
    css = {name: _color(value) for name, value in _declarations(element).items()}
    return {"style": ";".join(f"{name}:{value}" for name, value in css.items())} if css else {}


def _color(value: str) -> str:
    return _VARIABLES.get(value, value)


def _short(path: str) -> str:
    """A path with a tenth of a point as its finest step."""
    numbers = re.sub(r"-?\d+(\.\d+)?", lambda m: f"{float(m[0]):.1f}".removesuffix(".0"), path)
    return re.sub(r"\s*([A-Za-z])\s*", r"\1", numbers).strip()
