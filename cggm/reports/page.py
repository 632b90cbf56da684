"""A report as one HTML file: no network, readable on a phone, in dark mode and by keyboard."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, PackageLoader, Template
from markupsafe import Markup

from cggm.errors import UserError
from cggm.runs import write_atomically

LARGEST = 10_000_000
"""Bytes that a report may have."""


NOTHING = "numbers on them say nothing of patients or of real recordings."
SIMULATED = f"All data of this report are simulated: {NOTHING}"


@dataclass(frozen=True)
class Section:
    """A part of a report with a heading of its own; left out where its body is empty.

    Args:
        title: Its heading.
        body: HTML, all text in it escaped.
        script: JavaScript that the body needs; runs once the page is there.
    """

    title: str
    body: Markup
    script: str = ""

    @property
    def anchor(self) -> str:
        """Where links jump to."""
        return "".join(c if c.isalnum() else "-" for c in self.title.lower())


def write_page(
    path: Path, *, title: str, lead: str, sections: Sequence[Section], simulated: str
) -> Path:
    """Write a report as a whole.

    Args:
        path: The HTML file; its folder must exist.
        title: What it is about.
        lead: One sentence below the title.
        sections: What it shows, the most important first.
        simulated: What of it comes from simulated data, for a banner; empty where nothing does.

    Returns:
        The path.

    Raises:
        UserError: If the report would be larger than :data:`LARGEST`.
    """
    shown = [section for section in sections if section.body]
    text = _template("page.html.jinja").render(
        title=title,
        lead=lead,
        sections=shown,
        simulated=simulated,
        style=Markup(asset("style.css")),
        scripts=[Markup(asset("tables.js")), *(Markup(s.script) for s in shown if s.script)],
    )
    data = text.encode()
    if len(data) > LARGEST:
        raise UserError(
            f"{path}: expected a report below {LARGEST / 1e6:.0f} MB, but it has "
            f"{len(data) / 1e6:.1f} MB.",
            "Report on fewer cases at a time.",
        )
    write_atomically(path, data)
    return path


def asset(name: str, package: str = "cggm.reports") -> str:
    """Text of a file that lies beside a package's modules in ``assets``."""
    return (files(package) / "assets" / name).read_text("utf-8")


def render(name: str, package: str = "cggm.reports", **values: object) -> Markup:
    """HTML of a template in ``assets``; values are escaped.

    Args:
        name: Its file.
        package: Where its folder ``assets`` lies.
        values: What it shows.
    """
    return Markup(_template(name, package).render(values))


@cache
def _template(name: str, package: str = "cggm.reports") -> Template:
    loader = PackageLoader(package, "assets")
    return Environment(loader=loader, autoescape=True, trim_blocks=True).get_template(name)
