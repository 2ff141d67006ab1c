"""A comparison as one self-contained page, for people who would rather look.

`report.html.j2` is the page, `page.css` and `report.css` its looks and `report.js` what it does;
plotly.js is inlined.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from nnxconv.comparing import (
    KINDS,
    Difference,
    Finding,
    Report,
    ignored_lines,
    layer_place,
    verdict,
)
from nnxconv.render.pages import check_packages, drawn, own_file
from nnxconv.render.statistics import statistics_json
from nnxconv.tree import Key, in_order, notation, spell

PACKAGES = ("plotly", "jinja2")
OUTSIDE = "outside layers"


def comparison_html(report: Report) -> str:
    """The report as a page: verdict, heat map, histogram, and the table of differences.

    Raises:
      BadInput: plotly or jinja2 is not installed.
    """
    check_packages(*PACKAGES)
    from plotly.offline import get_plotlyjs

    return drawn(
        "report.html.j2",
        ["page.css", "report.css"],
        [get_plotlyjs(), own_file("report.js")],
        report=report,
        verdict=verdict(report),
        summary=list(_summary(report)),
        page=page_json(report),
    )


def page_json(report: Report) -> dict[str, Any]:
    """What the page draws: every leaf once, and the tables that refer to leaves by number."""
    findings = {finding.key: finding for finding in report.findings}
    keys = in_order(report.leaves.keys() | findings.keys())
    return {
        "compared_values": report.compared_values,
        "atol": report.tolerance.atol,
        "kinds": [[kind, report.counts[kind]] for kind in KINDS],
        "leaves": [_leaf_json(report, key, findings.get(key)) for key in keys],
        "sections": list(_sections(report, {key: number for number, key in enumerate(keys)})),
    }


def _leaf_json(report: Report, key: Key, finding: Finding | None) -> dict[str, Any]:
    a = finding.a if finding else report.leaves[key]
    b = finding.b if finding else report.leaves[key]
    found = report.statistics.get(key) or (finding.difference if finding else None)
    return {
        "key": spell(key),
        "kind": finding.kind if finding else "",
        "a": None if a is None else notation(a),
        "b": None if b is None else notation(b),
        "values": list(finding.values) if finding and finding.values else None,
        "found": None if found is None else _found_json(found),
    }


def _found_json(found: Difference) -> dict[str, Any]:
    """Statistics, and how many elements differ by at least 2**n, but not by 2**(n + 1)."""
    powers = {str(power): found.histogram[power] for power in sorted(found.histogram)}
    return {**statistics_json(found), "infinite": found.infinite, "histogram": powers}


def _sections(report: Report, numbers: Mapping[Key, int]) -> Iterator[dict[str, Any]]:
    """One table per tree of layers, then the leaves outside layers."""
    groups = set(report.layer_groups)
    tables: dict[Key, dict[Key, dict[int, int]]] = {}
    outside: list[dict[str, Any]] = []
    for key, number in numbers.items():
        place = layer_place(key, groups)
        layer = key[place]
        if place and isinstance(layer, int):
            rows = tables.setdefault(key[:place], {})
            rows.setdefault(key[place + 1 :], {})[layer] = number
        else:
            outside.append({"label": spell(key), "cells": [number]})
    for head in sorted(tables, key=lambda head: head[0] != "params"):
        yield _section(spell(head), tables[head])
    if outside:
        yield {"name": OUTSIDE, "layers": [], "rows": outside}


def _section(name: str, rows: Mapping[Key, Mapping[int, int]]) -> dict[str, Any]:
    layers = sorted({layer for cells in rows.values() for layer in cells})
    return {
        "name": name,
        "layers": layers,
        "rows": [
            {"label": spell(below), "cells": [rows[below].get(layer) for layer in layers]}
            for below in in_order(rows)
        ],
    }


def _summary(report: Report) -> Iterator[str]:
    """What was compared and how, beside the two paths."""
    tolerance = report.tolerance
    if report.compared_values:
        nan = "equals" if tolerance.equal_nan else "does not equal"
        yield f"values within atol {tolerance.atol:g}, rtol {tolerance.rtol:g}; NaN {nan} NaN"
    else:
        yield "names, shapes and types; values were not compared (--compare_values does)"
    yield from report.notes
    yield from ignored_lines(report)
    yield f"{report.seconds:.1f} s"
