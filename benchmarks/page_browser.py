"""A static server and a headless Chromium, for the benchmark and the tests of the page in `space/`."""

from __future__ import annotations

import functools
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

CHROMIUM = os.environ.get("KDMRI_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
NO_CHROMIUM = "no Chromium on this machine: apt-get install chromium, or set KDMRI_CHROMIUM to its path"
PATIENCE = 60_000  # milliseconds


class _Handler(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        """Nothing on the terminal."""


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder on loopback; give its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def chromium() -> Iterator[Any]:
    """Give a headless Chromium, the one installed on the system.

    Raises:
        FileNotFoundError: There is none.
        ImportError: Playwright is not installed.
    """
    from playwright.sync_api import sync_playwright

    if CHROMIUM is None:
        raise FileNotFoundError(NO_CHROMIUM)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
        yield browser
        browser.close()


def open_page(browser: Any, address: str, **options: Any) -> Any:
    """Open the page and wait until the model is there; `page.seen` lists requests, `page.wrong` console errors."""
    page = browser.new_page(**options)
    page.seen, page.wrong = [], []
    page.on("request", lambda request: page.seen.append(request.url))
    page.on("pageerror", lambda error: page.wrong.append(str(error)))
    page.on("console", lambda message: page.wrong.append(message.text) if message.type == "error" else None)
    page.goto(address)
    page.wait_for_selector("body[data-ready], #problem:not([hidden])", timeout=PATIENCE)
    return page


def answer(page: Any) -> dict[str, float]:
    """Label to probability, once there is an answer."""
    page.wait_for_selector("#result:not([hidden]) #bars tr, #problem:not([hidden])", timeout=PATIENCE)
    rows = page.locator("#bars tr").evaluate_all(
        "rows => rows.map(row => [row.dataset.label, row.dataset.probability])"
    )
    return {label: float(probability) for label, probability in rows}


def give(page: Any, file: Path) -> dict[str, float]:
    """Choose a file and return the answer to it."""
    forget_answer(page)
    page.set_input_files("#file", file)
    return answer(page)


def forget_answer(page: Any) -> None:
    """Hide answer and message, so that the next ones can be waited for."""
    page.evaluate("() => ['result', 'problem'].forEach((id) => (document.getElementById(id).hidden = true))")
