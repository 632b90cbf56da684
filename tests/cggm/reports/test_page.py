"""Pages, tables and charts: escaping, exact numbers, words beside pictures, size."""

import re

import numpy as np
import pytest
from markupsafe import Markup

from cggm.display import Line, LineChart
from cggm.errors import UserError
from cggm.reports.charts import figure
from cggm.reports.page import LARGEST, SIMULATED, Section, write_page
from cggm.reports.tables import Column, plain_table, sortable_table


def page(folder, body="x", simulated=""):
    section = Section("A <part>", Markup(body))
    file = folder / "report.html"
    return write_page(file, title="<b>", lead="&", sections=[section], simulated=simulated)


def test_page_escapes_text_and_forbids_the_network(tmp_path):
    text = page(tmp_path).read_text()
    assert "<h1>&lt;b&gt;</h1>" in text
    assert "A &lt;part&gt;" in text
    assert "default-src 'none'" in text
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", text)


def test_banner_only_of_simulated_data(tmp_path):
    assert "SIMULATED" not in page(tmp_path).read_text()
    assert f"</strong> {SIMULATED}" in page(tmp_path, simulated=SIMULATED).read_text()


def test_empty_sections_are_left_out(tmp_path):
    text = page(tmp_path, body="").read_text()
    assert "<section" not in text
    assert "part" not in text


def test_page_that_is_too_large_is_refused_and_the_old_one_kept(tmp_path):
    before = page(tmp_path).read_text()
    with pytest.raises(UserError, match="below 10 MB"):
        page(tmp_path, body="x" * LARGEST)
    assert (tmp_path / "report.html").read_text() == before


def test_cells_keep_the_exact_number():
    table = plain_table("T", [Column("n", ["a<b", "c"]), Column("v", [1 / 3, None], digits=2)])
    assert '<td data-v="0.3333333333333333">0.33</td>' in table
    assert "a&lt;b" in table
    assert "<td>\N{EN DASH}</td>" in table
    assert table.count('scope="row"') == 2
    assert table.count('scope="col"') == 2


def test_heat_runs_between_the_ends_of_its_scale_in_either_direction():
    def shades(scale):
        table = plain_table("T", [Column("n", ["a", "b"]), Column("v", [1.0, 3.0], 1, True, scale)])
        return re.findall(r"--v:([\d.]+)", table)

    assert shades((0.0, 4.0)) == ["0.25", "0.75"]
    assert shades((3.0, 1.0)) == ["1.00", "0.00"]
    assert shades((1.5, 2.0)) == ["0.00", "1.00"]


def test_headings_of_sortable_tables_are_buttons():
    table = sortable_table("T", [Column("a", ["x"]), Column("b", [1.0])], sorted_by=1)
    assert table.count("<button") == 2
    assert re.findall(r'aria-sort="ascending"><button type="button">(\w)', table) == ["b"]


def test_chart_has_its_values_as_a_table():
    x = np.arange(1.0, 1001)
    chart = figure(LineChart("S", [Line("t1", x, x / 1000, 0)], "step", note="<n>", named=True))
    assert '<td data-v="1.0">1.000</td>' in chart
    assert "<small>&lt;n&gt;</small>" in chart
    assert chart.count('class="legend"') == 1


def test_chart_without_a_value_is_nothing():
    x = np.arange(3.0)
    assert not figure(LineChart("S", [Line("t1", x, np.full(3, np.nan), 0)], "step"))


def test_texts_are_set_as_texts():
    table = plain_table("Refused", [Column("method", ["pmr"]), Column("reason", ["no classes"])])
    assert '<th scope="col" class="text">reason</th>' in table
    assert '<td class="text">no classes</td>' in table
