"""A real browser without a window, and what a test asks of a page in it."""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1300,900",
)
WAIT_SECONDS = 20
POLL_SECONDS = 0.02


@contextlib.contextmanager
def started() -> Iterator[Any]:
    """Chromium, driven by Selenium; CI must have it, other machines need not."""
    chromium, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
    try:
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service
    except ModuleNotFoundError:
        no_browser("selenium is not installed")
    if chromium is None or chromedriver is None:
        no_browser("chromium and chromium-driver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        found = webdriver.Chrome(options=options, service=Service(chromedriver))
        yield found
        found.quit()


def no_browser(reason: str) -> None:
    if os.environ.get("CI"):
        pytest.fail(f"{reason}, and CI is set")
    pytest.skip(reason)


@dataclass(frozen=True)
class Browser:
    """The browser with one page open."""

    driver: Any
    directory: Path

    def show(self, page: str, scheme: str = "light") -> None:
        """Opens the text of a page."""
        path = self.directory / "page.html"
        path.write_text(page, encoding="utf-8")
        self.prefer(scheme)
        self.load(path)

    def prefer(self, scheme: str) -> None:
        """Sets what the system says about light and dark."""
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})

    def load(self, path: Path) -> "Browser":
        for log in ("browser", "performance"):
            self.driver.get_log(log)
        self.driver.get(path.as_uri())
        return self

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def all(self, selector: str) -> list[Any]:
        """What is shown and fits the selector."""
        found = self.driver.find_elements("css selector", selector)
        return [element for element in found if element.is_displayed()]

    def texts(self, selector: str) -> list[str]:
        return [element.text for element in self.all(selector)]

    def styles(self, selector: str, name: str) -> list[str]:
        """A computed style of each element."""
        return self.run(
            "const [selector, name] = arguments;"
            "return [...document.querySelectorAll(selector)].map(e => getComputedStyle(e)[name])",
            selector,
            name,
        )

    def text(self, selector: str) -> str:
        [text] = self.texts(selector)
        return text

    def click(self, selector: str) -> None:
        [element] = self.all(selector)
        self.run("arguments[0].scrollIntoView({block: 'center'})", element)
        element.click()

    def search(self, text: str) -> None:
        [box] = self.all("#search")
        box.clear()
        box.send_keys(text or " ")

    def until(self, claim: str) -> None:
        """Waits until a JavaScript claim is true."""
        from selenium.webdriver.support.ui import WebDriverWait

        WebDriverWait(self.driver, WAIT_SECONDS, POLL_SECONDS).until(
            lambda _: self.run(f"return {claim}")
        )

    def shows(self, read: Callable[[], Any], expected: Any) -> None:
        """The page comes to show it: what the system or the pointer does is drawn a frame later."""
        from selenium.common.exceptions import StaleElementReferenceException, TimeoutException
        from selenium.webdriver.support.ui import WebDriverWait

        redrawn = [StaleElementReferenceException]
        seen: list[Any] = []

        def is_shown(_: Any) -> bool:
            seen[:] = [read()]
            return seen == [expected]

        with contextlib.suppress(TimeoutException):
            WebDriverWait(self.driver, WAIT_SECONDS, POLL_SECONDS, redrawn).until(is_shown)
        assert seen == [expected]

    def fetched(self) -> list[str]:
        """What was asked of the network, or of other files."""
        messages = [
            json.loads(row["message"])["message"] for row in self.driver.get_log("performance")
        ]
        urls = [
            message["params"]["request"]["url"]
            for message in messages
            if message["method"] == "Network.requestWillBeSent"
        ]
        page = self.driver.current_url
        return [url for url in urls if url != page and not url.startswith(("data:", "blob:"))]

    def console(self) -> list[str]:
        return [row["message"] for row in self.driver.get_log("browser")]
