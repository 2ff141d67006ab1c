"""The page of `match --html`, looked at in a real browser without a window."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nnxconv.matching import LeafPair, ModulePair, Proposal, propose
from nnxconv.matching.modules import modules_of
from nnxconv.matching.pairs import Pairs
from nnxconv.matching.trial import Trial
from nnxconv.renaming import Rules
from nnxconv.render.matching_html import pairs_json, proposal_html
from nnxconv.state import TrainState
from tests.support.browser import Browser
from tests.support.command import run
from tests.support.generated_pairs import Side
from tests.support.models import save
from tests.support.other_names import flax, torch

SCRIPT = "<img src=x onerror=alert(1)>"
LARGE = 30_000
Shapes = dict[str, tuple[int, ...]]


def side(shapes: Shapes) -> Side:
    """A tree of zeros, by dotted keys."""
    return Side("", {("params", *key.split(".")): np.zeros(s) for key, s in shapes.items()})


def layers(name: str, leaf: str, shapes: Shapes) -> Shapes:
    return {f"{name}_{i}.{key}.{leaf}": s for i in range(3) for key, s in shapes.items()}


def proposal(source: Shapes, template: Shapes) -> Proposal:
    state, groups = side(source).state()
    return propose(state, groups, side(template).state()[0], names=("/runs/a", "/runs/b"))


def of_every_kind() -> Proposal:
    """Some leaves are certain, turned or not, proposed, open, and only in one."""
    a: Shapes = {
        "query": (8, 8),
        "up": (8, 32),
        "down": (32, 8),
        "gadgets_in": (8, 7),
        "relic": (8, 7),
    }
    b: Shapes = {
        "q_proj": (8, 8),
        "up_proj": (8, 32),
        "down_proj": (32, 8),
        "gadget_in": (8, 7),
        "novel": (8, 7),
    }
    left: Shapes = {"left": (4, 9), "right": (4, 9), SCRIPT: (3,)}
    right: Shapes = {"first": (4, 9), "second": (4, 9), "new": (2,)}
    return proposal(
        layers("layers", "kernel", a) | {"head.kernel": (12, 12)} | left,
        layers("h", "kernel", b) | {"head.weight": (12, 12)} | right,
    )


def of_many_leaves() -> Proposal:
    """A hundred leaves in each of many modules."""
    shapes = {f"m{i // 100}.x{i}q": (4,) for i in range(LARGE)}
    sides = [
        modules_of(
            side({f"{head}.{key}": shape for key, shape in shapes.items()}).state()[0].leaves()
        )
        for head in "ab"
    ]
    found = [
        ModulePair((a,), (b,), "", (LeafPair((a.main,), (b.main,), {"same": ((),)}),))
        for a, b in zip(*sides, strict=True)
    ]
    return Proposal(
        "/runs/a", "/runs/b", Pairs(tuple(found)), Rules(()), Trial(TrainState({}), (), {})
    )


class PairsBrowser(Browser):
    """The browser with the page of a proposal."""

    def open(self, found: Proposal) -> "PairsBrowser":
        self.show(proposal_html(found))
        return self

    def press(self, *keys: str) -> None:
        """Presses keys where the focus is."""
        for key in keys:
            self.driver.switch_to.active_element.send_keys(key)

    def focus(self, place: int) -> None:
        self.run(f"document.getElementById('tree-{place}').focus()")

    def rows(self, place: int) -> list[str]:
        """The labels of one tree's rows, indented as they are nested."""
        return self.run(
            "return [...document.querySelectorAll(`#tree-${arguments[0]} .item`)].map(row => "
            "'  '.repeat(row.ariaLevel - 1) + row.querySelector('b').textContent)",
            place,
        )

    def lines(self, selector: str = "path") -> int:
        return len(self.driver.find_elements("css selector", f"#lines {selector}"))

    def cells(self) -> list[list[str]]:
        """The table of what is selected."""
        return self.run(
            "return [...document.querySelectorAll('#pairs tbody tr')].map(row => "
            "[...row.cells].map(cell => cell.textContent))"
        )


@pytest.fixture
def browser(driver: Any, tmp_path: Path) -> PairsBrowser:
    return PairsBrowser(driver, tmp_path)


def test_both_trees_stand_side_by_side_with_a_line_for_each_pair(browser: PairsBrowser) -> None:
    browser.open(of_every_kind())
    assert browser.text("h1") == of_every_kind().summary()
    assert browser.texts("#trees h2") == ["source /runs/a", "template /runs/b"]
    assert browser.rows(0) == [
        SCRIPT,
        *("head", "  kernel"),
        "layers.#",
        *("  down", "    kernel", "  gadgets_in", "    kernel", "  query", "    kernel"),
        *("  relic", "    kernel", "  up", "    kernel"),
        *("left", "right"),
    ]
    assert browser.rows(1)[:4] == ["first", "h_#", "  down_proj", "    kernel"]
    kinds = ("certain", "turned", "proposed", "open")
    assert [browser.lines(f"path.{kind}") for kind in kinds] == [3, 1, 1, 5]
    dashes = browser.styles("#kinds path", "strokeDasharray")
    assert len(set(dashes)) == len(set(browser.styles("#kinds path", "stroke"))) == 4
    assert browser.texts("#kinds button") == [
        "= certain: 9",
        "± certain, but turned or not: 1",
        "~ proposed: 3",
        "? open: 5",
        "− only in one: 2",
    ]
    assert (browser.console(), browser.fetched()) == ([], [])


@pytest.mark.full
def test_the_keyboard_alone_leads_everywhere(browser: PairsBrowser) -> None:
    from selenium.webdriver.common.keys import Keys

    browser.open(of_every_kind())
    browser.focus(0)
    browser.press(Keys.END, Keys.HOME, Keys.ARROW_DOWN, Keys.ARROW_RIGHT)
    assert browser.text("#row-key") == "head.kernel"
    active = "return document.activeElement.getAttribute('aria-activedescendant')"
    [selected] = browser.all(".item[aria-selected='true']")
    assert browser.run(active) == selected.get_attribute("id")
    assert browser.lines("path.selected") == 1
    assert [row[0] for row in browser.cells()] == ["± certain, but turned or not"]
    assert browser.cells()[0][4].splitlines()[0] == "  same:"
    browser.press(Keys.ENTER)
    assert browser.text("#row-key") == "head.weight"
    assert browser.run("return document.activeElement.id") == "tree-1"
    browser.press(Keys.ARROW_LEFT, Keys.ARROW_LEFT)
    assert browser.text("#row-key") == "head"
    assert "  weight" not in browser.rows(1)
    assert browser.lines("path.turned") == 1
    browser.press("/")
    assert browser.run("return document.activeElement.id") == "search"
    browser.press("gadget")
    assert browser.run("return document.activeElement.value") == "gadget"


@pytest.mark.full
def test_a_search_leaves_pairs_of_which_either_key_fits(browser: PairsBrowser) -> None:
    browser.open(of_every_kind())
    browser.search("LAYERS up_proj")
    assert browser.rows(0) == ["layers.#", "  up", "    kernel"]
    assert browser.rows(1) == ["h_#", "  up_proj", "    kernel"]
    assert browser.text("#found") == "3 of 19 leaves, and 3 of 19"
    browser.search("nowhere")
    assert (browser.rows(0), browser.rows(1), browser.lines()) == ([], [], 0)


@pytest.mark.full
def test_kinds_can_be_left_out(browser: PairsBrowser) -> None:
    browser.open(of_every_kind())
    for name in ("certain", "turned", "open", "only"):
        browser.click(f"#kinds button.{name}")
    assert browser.rows(0) == ["layers.#", "  gadgets_in", "    kernel"]
    browser.click("#kinds button.proposed")
    assert browser.rows(0) == []
    browser.click("#kinds button.only")
    assert (browser.rows(0), browser.rows(1)) == ([SCRIPT], ["new"])


@pytest.mark.full
def test_folded_modules_keep_their_lines_and_say_what_is_in_them(browser: PairsBrowser) -> None:
    browser.open(of_every_kind())
    browser.click("#fold")
    assert browser.rows(0) == [SCRIPT, "head", "layers.#", "left", "right"]
    assert browser.lines() == 1 + 3 + 4  # layers have leaves of three kinds
    assert browser.texts("#tree-0 .item .marks") == ["−", "1 ±", "9 =\n3 ~\n3 ?", "?", "?"]
    browser.click("#tree-0 .item:nth-child(3)")
    assert [row[:3] for row in browser.cells()] == [
        ["= certain", "layers.#.down.kernel", "h_#.down_proj.kernel"],
        ["~ proposed", "layers.#.gadgets_in.kernel", "h_#.gadget_in.kernel"],
        ["= certain", "layers.#.query.kernel", "h_#.q_proj.kernel"],
        ["? open", "layers.#.relic.kernel", "h_#.novel.kernel"],
        ["= certain", "layers.#.up.kernel", "h_#.up_proj.kernel"],
    ]
    browser.click("#unfold")
    assert len(browser.rows(0)) == 16


def test_names_are_text_and_never_run(browser: PairsBrowser) -> None:
    browser.open(of_every_kind())
    browser.click("#tree-0 .item:first-child")
    assert browser.text("#row-key") == SCRIPT
    assert (browser.all("img"), browser.console()) == ([], [])


@pytest.mark.full
def test_a_tree_of_many_leaves_is_its_modules_until_somebody_looks(browser: PairsBrowser) -> None:
    browser.open(of_many_leaves())
    assert browser.rows(0)[:2] == ["a", "  m0"]
    assert browser.run("return document.querySelectorAll('.item').length") < 200
    browser.search("x29999q")
    assert browser.rows(0) == ["a", "  m299", "    x29999q"]
    browser.search("")
    browser.click("#unfold")
    browser.run("document.getElementById('tree-1').scrollTop = 1e7")
    browser.shows(lambda: browser.rows(1)[-1], "    x9999q")
    assert browser.run("return document.querySelectorAll('.item').length") < 200
    assert browser.console() == []


def test_every_leaf_is_in_the_page_once() -> None:
    page = pairs_json(of_every_kind())
    for tree, count in zip(page["sides"], (19, 19), strict=True):
        assert sum(leaf["count"] for leaf in tree["leaves"]) == count
        assert sorted(tree["order"]) == list(range(len(tree["leaves"])))


@pytest.mark.full
def test_the_command_writes_the_page_beside_its_text(browser: PairsBrowser, tmp_path: Path) -> None:
    source = save(tmp_path / "a", {"params": flax()})
    template = save(tmp_path / "b", {"params": torch(flax())})
    page = tmp_path / "pairs.html"
    outcome = run("match", source, template, "--by_values", "--html", page, "--json")
    assert (outcome.exit_code, outcome.stderr) == (0, "")
    browser.load(page)
    assert browser.lines() == browser.lines(".certain") > 0
    rules = browser.run("return document.getElementById('rules').textContent").splitlines()
    assert rules == json.loads(outcome.stdout)["rules"]


@pytest.mark.parametrize(
    ("file", "told"),
    [
        ("pairs.txt", "is no .html"),
        ("nowhere/pairs.html", "is in a directory that is not there"),
    ],
)
def test_a_page_that_cannot_be_written_is_refused_before_anything_is_read(
    file: str, told: str
) -> None:
    outcome = run("match", "not", "there", "--html", file)
    assert (outcome.exit_code, outcome.stderr) == (2, f"error: `--html {file}` {told}\n")


def test_a_page_that_is_there_is_replaced_only_when_asked(tmp_path: Path) -> None:
    page = tmp_path / "pairs.html"
    page.write_text("mine")
    outcome = run("match", "not", "there", "--html", page)
    assert (outcome.exit_code, outcome.stderr, page.read_text()) == (
        2,
        f"error: `{page}` exists\n\nhint: add `--overwrite` to replace it\n",
        "mine",
    )
