"""Curves of the HTML page."""
import math
from dataclasses import replace

import pytest
from records_sample import report

from gradcheck_doctor.report.charts import HEIGHT, WIDTH, chart_of
from gradcheck_doctor.report.html import fragment
from gradcheck_doctor.report.render import render


def test_a_curve_fills_its_picture():
    chart = chart_of("Loss", [(0, 3.0), (5, 2.0), (10, 1.0)])
    assert chart.lines == (((0.0, 0.0), (WIDTH / 2, HEIGHT / 2), (WIDTH, HEIGHT)),)
    assert (chart.low, chart.high, chart.first, chart.last, chart.logarithmic, chart.broken) == (1.0, 3.0, 0, 10, False, None)


def test_values_over_decades_are_logarithmic():
    chart = chart_of("Gradient norm", [(0, 1e-4), (1, 1e-2), (2, 1.0)])
    assert chart.logarithmic
    assert [y for _, y in chart.lines[0]] == [HEIGHT, HEIGHT / 2, 0.0]
    assert not chart_of("Loss", [(0, -1e-4), (1, 1e-2), (2, 1.0)]).logarithmic


def test_a_curve_is_broken_where_it_is_not_finite():
    chart = chart_of("Loss", [(0, 1.0), (1, 2.0), (2, math.nan), (3, 1.5), (4, math.inf)])
    assert [len(line) for line in chart.lines] == [2, 1]
    assert chart.broken == 2


@pytest.mark.parametrize("curve", [[], [(0, 1.0)], [(0, math.nan), (1, math.inf), (2, 3.0)]])
def test_less_than_two_values_are_no_curve(curve):
    assert chart_of("Loss", curve) is None


def test_constant_and_enormous_values_have_a_place():
    assert {y for _, y in chart_of("Loss", [(0, 2.0), (1, 2.0)]).lines[0]} == {HEIGHT / 2}
    assert [y for _, y in chart_of("Loss", [(0, -1.7e308), (1, 1.7e308)]).lines[0]] == [HEIGHT, 0.0]


def test_the_page_shows_the_curves_of_a_run():
    data = replace(report(), curves={"loss": tuple((float(i), 1.0 / (i + 1)) for i in range(20)), "grad_norm": ((0.0, 1.0), (1.0, math.nan), (2.0, 2.0))})
    for page in (render(data, "html"), fragment(data)):
        assert page.count("<polyline") == 3
        assert "Loss from step 0 to 19: between 0.05 and 1" in page
        assert "not finite from step 1" in page
    assert "<polyline" not in render(replace(data, curves={}), "html")


def test_symptoms_can_be_unfolded():
    data = report()
    first, *others = data.findings
    cause = replace(first, related=tuple(f.fingerprint for f in others))
    page = render(replace(data, findings=(cause, *others)), "html")
    folded = page.partition("<summary>explains")[2].partition("</details>")[0]
    assert others
    assert all(f.rule in folded and f.module in folded for f in others)
