"""The HTML report of a comparison, looked at in a real browser without a window."""

import json
import math
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nnxconv.commands.compare import compare
from nnxconv.comparing.difference import Difference, Tolerance, measure
from nnxconv.comparing.report import Finding, Report, Side
from nnxconv.errors import BadInput
from nnxconv.render.comparison import check_report_files, write_reports
from nnxconv.render.html import comparison_html, page_json
from nnxconv.tree.keys import Key
from nnxconv.tree.views import Source
from tests.support import checkpoints
from tests.support.browser import Browser

SCRIPT = "<script>document.title='ran'</script>"
LAYERS: Key = ("params", "decoder", "layers")
BACK = "backgroundColor"
MOVE_MILLISECONDS = 20


def source(shape: tuple[int, ...], dtype: str = "float32") -> Source:
    return Source("x", shape, dtype, shape)


def report_of(
    values: Mapping[Key, tuple[np.ndarray, np.ndarray]],
    others: tuple[Finding, ...] = (),
    *,
    compared_values: bool = True,
    notes: tuple[str, ...] = (),
) -> Report:
    """A report on pairs of values, and on what differs in other ways."""
    leaves = {key: source(a.shape) for key, (a, _) in values.items()}
    statistics = {key: measure(a, b, Tolerance()) for key, (a, b) in values.items()}
    found = [
        Finding("value", key, leaves[key], leaves[key], difference)
        for key, difference in statistics.items()
        if difference.beyond
    ]
    return Report(
        Side("/runs/a/4000/items", "linen"),
        Side("/runs/b/4000/items", "nnx"),
        [*others, *(found if compared_values else [])],
        leaves | {other.key: other.a or other.b or source(()) for other in others},
        Tolerance(),
        compared_values,
        layer_groups=(LAYERS[1:],),
        statistics=statistics if compared_values else {},
        notes=notes,
    )


def differing(layers: int = 3, **options: Any) -> Report:
    """`mlp.kernel` differs by 2**-n in layer n; layer 1 has one NaN and layer 2 no bias."""
    values: dict[Key, tuple[np.ndarray, np.ndarray]] = {}
    for layer in range(layers):
        a = np.zeros((4, 8), np.float32)
        b = a.copy()
        b[layer % 4, 5] = 2.0**-layer
        if layer == 1:
            b[3, 7] = math.nan
        values[*LAYERS, layer, "mlp", "kernel"] = a, b
        values[*LAYERS, layer, "norm", "scale"] = a[0], a[0] + np.float32(1e-7)
        if layer != 2:
            values[*LAYERS, layer, "norm", "bias"] = a[0], a[0]
    values["params", "embed"] = np.ones((2, 2)), np.array([[1, 2], [1, 5]])
    others = (
        Finding("missing", (*LAYERS, 2, "norm", "bias"), source((8,)), None),
        Finding("extra", ("params", SCRIPT), None, source((3,))),
        Finding("shape", ("params", "head"), source((4, 8)), source((8, 4))),
        Finding("dtype", ("params", "table"), source((4,)), source((4,), "bfloat16")),
    )
    return report_of(values, others, **options)


def matching(layers: int) -> Report:
    zeros = np.zeros((4, 8), np.float32)
    keys: list[Key] = [(*LAYERS, layer, "mlp", "kernel") for layer in range(layers)]
    return report_of(dict.fromkeys([*keys, ("params", "embed")], (zeros, zeros)))


class ReportBrowser(Browser):
    """The browser with the page of a comparison."""

    def open(self, report: Report, scheme: str = "light") -> "ReportBrowser":
        self.show(comparison_html(report), scheme)
        return self

    def pick(self, section: int, row: int, column: int) -> None:
        """A click on a cell, once the page knows that the pointer is there."""
        self.cell(section, row, column).perform()
        self.until("!document.getElementById('tip').hidden")
        self.cell(section, row, column).pause(0.2).click().perform()

    def cell(self, section: int, row: int, column: int) -> Any:
        """The pointer over one cell of a heat map, as actions to go on with."""
        from selenium.webdriver import ActionChains

        area = self.all(".map .nsewdrag")[section]
        self.run("arguments[0].scrollIntoView({block: 'center'})", area)
        rows, columns = self.run(
            "const z = document.querySelectorAll('.map > div')[arguments[0]].data[0].z;"
            "return [z.length, z[0].length]",
            section,
        )
        x = area.size["width"] * ((column + 0.5) / columns - 0.5)
        y = area.size["height"] * ((row + 0.5) / rows - 0.5)
        actions = ActionChains(self.driver, duration=MOVE_MILLISECONDS)
        return actions.move_to_element_with_offset(area, round(x) - 2, round(y)).move_by_offset(
            2, 0
        )

    def keys(self) -> list[str]:
        """The first column of the table."""
        return self.texts("#table td.key")

    def bars(self) -> list[int]:
        return self.run("return document.getElementById('histogram').data[0].y")


@pytest.fixture
def browser(driver: Any, tmp_path: Path) -> ReportBrowser:
    return ReportBrowser(driver, tmp_path)


PAGES = {
    "one layer, equal": matching(1),
    "96 layers, equal": matching(96),
    "one layer, different": differing(1),
    "96 layers, different": differing(96),
    "only metadata": differing(compared_values=False),
    "no layers": report_of({("params", "w"): (np.zeros(3), np.ones(3))}),
    "nothing": report_of({}),
}


@pytest.mark.sample(1)
@pytest.mark.parametrize("name", PAGES)
def test_a_page_has_no_errors_and_fetches_nothing(browser: ReportBrowser, name: str) -> None:
    browser.open(PAGES[name])
    sections = page_json(PAGES[name])["sections"]
    assert len(browser.all(".map .heatmaplayer image")) == len(sections)
    browser.prefer("dark")
    browser.shows(lambda: browser.styles("body", BACK), ["rgb(20, 23, 28)"])
    assert (browser.console(), browser.fetched()) == ([], [])


def test_the_logs_would_show_an_error_and_a_fetch(browser: ReportBrowser) -> None:
    path = browser.directory / "bad.html"
    path.write_text("<img src='http://127.0.0.1:9/'><script>throw Error('bad')</script>")
    browser.load(path)
    assert any("bad" in message for message in browser.console())
    assert browser.fetched() == ["http://127.0.0.1:9/"]


def test_the_verdict_and_both_sides_stand_first(browser: ReportBrowser) -> None:
    browser.open(differing(notes=("the layer axis is that of b",)))
    assert browser.text("h1").startswith("8 of 13 arrays differ: ")
    assert browser.texts("dd") == ["/runs/a/4000/items linen", "/runs/b/4000/items nnx"]
    assert browser.texts(".summary li") == [
        "values within atol 1e-05, rtol 1e-05; NaN equals NaN",
        "the layer axis is that of b",
        "0.0 s",
    ]


@pytest.mark.full
def test_parameters_are_rows_and_layers_are_columns(browser: ReportBrowser) -> None:
    browser.open(differing())
    assert browser.texts("h3") == [
        "params.decoder.layers 3 parameters × 3 layers, 4 differ",
        "outside layers 4 parameters, 4 differ",
    ]
    first = ".map:nth-of-type(1)"
    assert browser.texts(f"{first} .ytick") == ["mlp.kernel", "norm.bias", "norm.scale"]
    assert browser.texts(f"{first} .xtick") == ["0", "1", "2"]
    assert browser.run("return document.querySelectorAll('.heatmaplayer image').length") == 2


@pytest.mark.full
def test_what_is_equal_within_beyond_and_not_comparable_look_different(
    browser: ReportBrowser,
) -> None:
    browser.open(differing())
    assert browser.texts("#legend div") == [
        "equal",
        "−\nonly in a",
        "+\nonly in b",
        "S\nshape differs",
        "D\ndtype differs",
        "∞\nNaN or infinite on one side",
        "within tolerance: 1e-7\n1e-6",
        "beyond tolerance: 1e-1\n1e1",
    ]
    colors = browser.styles("#legend i", "background")
    assert len(set(colors)) == 8


@pytest.mark.full
def test_a_cell_shows_its_numbers_under_the_pointer(browser: ReportBrowser) -> None:
    browser.open(differing())
    browser.cell(0, 0, 2).perform()
    browser.until("!document.getElementById('tip').hidden")
    assert browser.text("#tip").splitlines() == [
        "params.decoder.layers[2].mlp.kernel",
        "beyond tolerance",
        "f32[4,8]",
        "max |a-b| 0.25 at [2,5]",
        "mean |a-b| 0.00781",
        "max relative 1",
        "1 of 32 beyond tolerance, 1 not equal",
    ]
    browser.cell(0, 1, 2).perform()
    browser.until("document.getElementById('tip').innerText.includes('only in a')")
    assert browser.text("#tip").splitlines() == [
        "params.decoder.layers[2].norm.bias",
        "only in a",
        "a: f32[8], b: none",
    ]


@pytest.mark.full
def test_a_cell_of_96_layers_is_the_one_under_the_pointer(browser: ReportBrowser) -> None:
    browser.open(differing(96))
    browser.cell(0, 2, 95).perform()
    browser.until("!document.getElementById('tip').hidden")
    assert browser.text("#tip").splitlines()[0] == "params.decoder.layers[95].norm.scale"


@pytest.mark.full
def test_selecting_a_parameter_changes_the_histogram(browser: ReportBrowser) -> None:
    browser.open(differing())
    assert browser.text("#leaf-key") == "params.decoder.layers[1].mlp.kernel"
    assert browser.bars() == [30, 1, 1]  # equal, 2**-1, NaN
    browser.pick(0, 2, 0)
    browser.shows(lambda: browser.text("#leaf-key"), "params.decoder.layers[0].norm.scale")
    browser.shows(browser.bars, [8])
    assert len(browser.all("#histogram .bars .point")) == 1
    browser.click("#table tr:first-child td.key button")
    assert browser.text("#leaf-key") == f'params["{SCRIPT}"]'
    assert browser.text("#no-histogram") == "Its values cannot be compared"
    assert browser.all("#histogram") == []


@pytest.mark.full
def test_a_bar_shows_its_range_and_its_count_under_the_pointer(browser: ReportBrowser) -> None:
    from selenium.webdriver import ActionChains

    zeros = np.zeros(64)
    browser.open(report_of({("params", "w"): (zeros, np.full(64, 1.5))}))
    [area] = browser.all("#histogram .nsewdrag")
    browser.run("arguments[0].scrollIntoView({block: 'center'})", area)
    ActionChains(browser.driver, duration=MOVE_MILLISECONDS).move_to_element(area).move_by_offset(
        1, 20
    ).perform()
    browser.shows(
        lambda: browser.texts("#histogram .hovertext .line"), ["1 ≤ |a-b| < 2", "64 elements"]
    )


@pytest.mark.full
def test_the_histogram_of_all_layers_is_their_sum(browser: ReportBrowser) -> None:
    browser.open(differing())
    browser.click("#whole")
    assert browser.text("#leaf-key") == "params.decoder.layers[*].mlp.kernel"
    assert browser.text("#whole-label") == "all 3 layers together"
    assert browser.bars() == [92, 1, 1, 1, 1]


@pytest.mark.full
def test_a_search_finds_rows_of_the_table_and_of_the_heat_map(browser: ReportBrowser) -> None:
    browser.open(differing())
    browser.search("LAYERS norm")
    browser.until("document.getElementById('found').textContent !== ''")
    assert browser.text("#found") == "6 of 13 arrays"
    assert browser.keys() == ["params.decoder.layers[2].norm.bias"]
    assert browser.texts(".map .ytick") == ["norm.bias", "norm.scale"]
    browser.search("nowhere")
    browser.until("document.getElementById('found').textContent.startsWith('0')")
    assert browser.text("#no-rows") == "No difference fits the search"
    browser.search("")
    browser.until("document.getElementById('found').textContent === ''")
    assert len(browser.keys()) == 8


@pytest.mark.full
def test_a_click_on_a_column_sorts_the_table(browser: ReportBrowser) -> None:
    browser.open(differing())
    heads = browser.texts("#table th")
    column = next(n for n, head in enumerate(heads, 1) if head.startswith("max |a-b|"))

    def numbers() -> list[str]:
        browser.click(f"#table th:nth-child({column}) button")
        return browser.texts(f"#table td:nth-child({column})")

    assert numbers() == ["inf", "4", "1", "0.25", "", "", "", ""]
    assert numbers() == ["0.25", "1", "4", "inf", "", "", "", ""]
    browser.click("#table th:first-child button")
    in_order = browser.keys()
    browser.click("#table th:first-child button")
    assert browser.keys() == in_order[::-1]


@pytest.mark.full
def test_the_table_can_leave_out_kinds_and_show_what_is_equal(browser: ReportBrowser) -> None:
    browser.open(differing())
    assert browser.texts("#kinds button") == [
        "only in a 1",
        "only in b 1",
        "shape 1",
        "dtype 1",
        "value 4",
    ]
    browser.click("[data-kind=value]")
    assert len(browser.keys()) == 4
    browser.click("#every-leaf")
    assert len(browser.keys()) == 9
    browser.click("#differing-rows")
    assert browser.texts(".map .ytick")[:2] == ["mlp.kernel", "norm.bias"]


@pytest.mark.full
def test_a_long_table_and_a_long_heat_map_are_shown_in_parts(browser: ReportBrowser) -> None:
    zeros = np.zeros(2)
    equal = {("params", f"equal_{n}"): (zeros, zeros) for n in range(250)}
    other = {("params", f"other_{n}"): (zeros, zeros + 1) for n in range(205)}
    browser.open(report_of(equal | other))
    assert len(browser.all("#table tbody tr")) == 200
    assert browser.text("#more") == "5 more: show the next 200"
    browser.click("#more")
    assert len(browser.all("#table tbody tr")) == 205
    assert browser.text("h3") == (
        "outside layers 455 parameters, 205 differ;"
        " the 400 that differ most are drawn, a search finds the others"
    )
    assert (
        browser.run(
            "return [...document.querySelectorAll('.map .ytick')]"
            ".filter(label => label.textContent.includes('other')).length"
        )
        == 205
    )


@pytest.mark.full
def test_the_page_follows_the_system_and_then_the_button(browser: ReportBrowser) -> None:
    backgrounds = {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 28)"}

    def shown() -> set[str]:
        charts = browser.styles(
            ".map .main-svg:first-child, #histogram .main-svg:first-child", BACK
        )
        assert len(charts) == 3
        return {*charts, *browser.styles("body", BACK)}

    browser.open(differing(), "dark")
    browser.shows(shown, {backgrounds["dark"]})
    browser.prefer("light")
    browser.shows(shown, {backgrounds["light"]})
    browser.click("#theme")
    browser.shows(shown, {backgrounds["dark"]})
    browser.prefer("dark")
    browser.click("#theme")
    browser.shows(shown, {backgrounds["light"]})
    assert browser.console() == []


@pytest.mark.full
@pytest.mark.trust
def test_names_are_text_and_never_run(browser: ReportBrowser) -> None:
    names = [
        SCRIPT,
        "</script>" + SCRIPT,
        "<img src=x onerror=\"document.title='ran'\">",
        "<b>&lt;",
    ]
    one = np.ones(4)
    report = report_of({("params", name): (one, one + 1) for name in names}, notes=(SCRIPT,))
    browser.open(report)
    assert browser.driver.title == "nnxconv compare: 4 of 4 arrays differ: 4 in value"
    assert sorted(browser.keys()) == sorted(f"params[{json.dumps(name)}]" for name in names)
    assert browser.texts(".map .ytick") == [
        "params[\"</scrip…ocument.title='ran'</script>\"]",
        'params["<b>&lt;"]',
        'params["<img sr…or=\\"document.title=\'ran\'\\">"]',
        "params[\"<script…ocument.title='ran'</script>\"]",
    ]
    for row in range(len(names)):
        browser.pick(0, row, 0)
    assert browser.driver.title == "nnxconv compare: 4 of 4 arrays differ: 4 in value"
    assert browser.console() == []


@pytest.mark.full
@pytest.mark.trust
def test_a_script_that_a_checkpoint_has_for_a_name_does_not_run(browser: ReportBrowser) -> None:
    names = [
        SCRIPT,
        "</script>" + SCRIPT,
        "\"><img src=x onerror=document.title='ran'>",
        "\x1b[31m",
    ]
    ones = {name: {"kernel": np.ones((2, 3), np.float32)} for name in names}
    twos = {name: {"kernel": np.full((2, 3), 2, np.float32)} for name in names}
    paths = [
        str(checkpoints.save_item(browser.directory / side, {"params": {"params": tree}}))
        for side, tree in (("a", ones), ("b<script>document.title='ran'<", twos))
    ]
    file = browser.directory / "report.html"
    write_reports(compare(*paths, compare_values=True), [str(file)])
    browser.load(file)
    for row in range(len(names)):
        browser.pick(0, row, 0)
    assert browser.driver.title == "nnxconv compare: 4 of 4 arrays differ: 4 in value"
    assert sorted(browser.keys()) == sorted(f"params[{json.dumps(name)}].kernel" for name in names)
    assert (browser.console(), browser.fetched()) == ([], [])


def test_the_policy_stops_a_script_that_is_not_the_pages_own(browser: ReportBrowser) -> None:
    page = comparison_html(matching(1)).replace("</body>", f"{SCRIPT}</body>")
    path = browser.directory / "injected.html"
    path.write_text(page, encoding="utf-8")
    browser.load(path)
    assert browser.driver.title.startswith("nnxconv compare: match")
    [message] = browser.console()
    assert "Content Security Policy" in message


@pytest.mark.full
def test_a_comparison_of_metadata_says_that_values_were_not_compared(
    browser: ReportBrowser,
) -> None:
    browser.open(differing(compared_values=False))
    assert browser.text("#map-title") == "Metadata"
    assert browser.texts("#table th") == ["key", "difference", "a", "b"]
    assert browser.all("#leaf") == []
    browser.pick(0, 0, 0)
    browser.shows(lambda: browser.texts("#no-histogram"), ["Values were not compared"])


def test_a_page_of_two_real_checkpoints_shows_where_they_differ(browser: ReportBrowser) -> None:
    import orbax.checkpoint as ocp

    kernels = np.random.default_rng(0).standard_normal((3, 8, 16)).astype(np.float32)
    stacked = {"params": {"params": {"decoder": {"layers": {"kernel": kernels.swapaxes(0, 1)}}}}}
    changed = kernels.copy()
    changed[1, 7, 15] += 0.5
    apart = {f"layers_{n}": {"kernel": kernel} for n, kernel in enumerate(changed)}
    paths = [browser.directory / name for name in ("a", "b")]
    with ocp.PyTreeCheckpointer() as checkpointer:
        for path, tree in zip(
            paths, [stacked, {"params": {"params": {"decoder": apart}}}], strict=True
        ):
            checkpointer.save(path, tree)
    report = compare(*map(str, paths), compare_values=True)
    file = browser.directory / "report.html"
    write_reports(report, [str(file)])
    browser.load(file)
    assert browser.text("h1") == "1 of 3 arrays differs: 1 in value"
    assert browser.keys() == ["params.decoder.layers[1].kernel"]
    assert browser.bars() == [127, 1]
    browser.cell(0, 0, 1).perform()
    browser.until("!document.getElementById('tip').hidden")
    assert "max |a-b| 0.5 at [7,15]" in browser.text("#tip").splitlines()
    assert (browser.console(), browser.fetched()) == ([], [])


def test_a_histogram_counts_every_finite_difference_once() -> None:
    generator = np.random.default_rng(0)
    a, b = generator.standard_normal((2, 1000))
    b[:3] = math.inf
    b[3:10] = a[3:10]
    found = measure(a, b, Tolerance())
    assert (found.unequal, found.infinite) == (993, 3)
    assert sum(found.histogram.values()) == 990
    both = Difference()
    both.add(found, (0,))
    both.add(found, (1000,))
    assert both.histogram == {power: 2 * count for power, count in found.histogram.items()}


def test_leaves_are_in_the_table_of_their_layers_and_parameters_come_first() -> None:
    zeros = np.zeros(2)
    keys: list[Key] = [
        ("opt_state", 0, "mu", "decoder", "layers", 1, "w"),
        ("params", "decoder", "layers", 10, "w"),
        ("params", "decoder", "layers", 2, "w"),
        ("opt_state", 1, "count"),
    ]
    page = page_json(report_of(dict.fromkeys(keys, (zeros, zeros))))
    sections = [(s["name"], s["layers"], s["rows"][0]["label"]) for s in page["sections"]]
    assert sections == [
        ("params.decoder.layers", [2, 10], "w"),
        ("opt_state[0].mu.decoder.layers", [1], "w"),
        ("outside layers", [], "opt_state[1].count"),
    ]


def test_the_same_report_gives_the_same_page() -> None:
    assert comparison_html(differing()) == comparison_html(differing())


NEEDS_PLOTLY = """\
error: an HTML report needs plotly

hint: `pip install 'nnxconv[report]'`
"""


def test_without_plotly_a_report_is_refused_before_anything_is_compared(tmp_path: Path) -> None:
    command = "import sys; sys.modules['plotly'] = None; from nnxconv.cli import main; main()"
    arguments = ["compare", "no_a", "no_b", "--report", str(tmp_path / "x.html")]
    done = subprocess.run(
        [sys.executable, "-c", command, *arguments], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (2, "", NEEDS_PLOTLY)
    assert list(tmp_path.iterdir()) == []


def test_without_both_packages_the_message_names_both(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("plotly", "jinja2"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(BadInput) as error:
        comparison_html(matching(1))
    assert error.value.message == "an HTML report needs plotly and jinja2"


# file, message
BAD_FILES = {
    "report.pdf": "`--report report.pdf` is neither .json nor .html",
    "nowhere/x.html": "`--report nowhere/x.html` is in a directory that is not there",
}


@pytest.mark.parametrize("file", BAD_FILES)
def test_a_report_file_that_cannot_be_written_is_refused(
    file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput) as error:
        check_report_files([file])
    assert error.value.message == BAD_FILES[file]
