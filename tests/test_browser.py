"""A reader's browser: notebook 00 opened in JupyterLab, run from the menu, its slider moved with
the keyboard.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
NOTEBOOK = "00_start_here.ipynb"

pytestmark = [pytest.mark.browser, pytest.mark.weights]

if CHROMIUM is None and not os.environ.get("CI"):
    pytest.skip(
        "no Chromium on this machine (on Debian: apt-get install chromium)", allow_module_level=True
    )


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    """A copy of the reader's notebook in a course of links, so that running it changes nothing
    here.
    """
    folder = tmp_path_factory.mktemp("course")
    (folder / "notebooks").mkdir()
    shutil.copy(ROOT / "notebooks" / NOTEBOOK, folder / "notebooks")
    for name in ("course_utils", "data"):
        (folder / name).symlink_to(ROOT / name)
    return folder


@pytest.fixture(scope="module")
def jupyter(course, tmp_path_factory):
    """JupyterLab's address, with every cell in the page whether or not it is in view."""
    settings = tmp_path_factory.mktemp("settings")
    (settings / "@jupyterlab" / "notebook-extension").mkdir(parents=True)
    (settings / "@jupyterlab" / "notebook-extension" / "tracker.jupyterlab-settings").write_text(
        json.dumps({"windowingMode": "none"})
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = [
        "--no-browser",
        "--allow-root",
        f"--port={port}",
        f"--ServerApp.root_dir={course}",
        "--IdentityProvider.token=",
        "--ServerApp.password=",
    ]
    environment = {
        **{name: value for name, value in os.environ.items() if name != "IPYTHONDIR"},
        "JUPYTERLAB_SETTINGS_DIR": str(settings),
        "COURSE_PROFILE": "quick",
    }
    log = open(settings / "log", "w")
    server = subprocess.Popen(
        [sys.executable, "-m", "jupyterlab", *options],
        env=environment,
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    try:
        _wait_for(f"http://127.0.0.1:{port}/api", server, settings / "log")
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(30)


def _wait_for(url, server, log, seconds=120):
    for _ in range(10 * seconds):
        assert server.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(url):
                return
        except OSError:
            time.sleep(0.1)
    raise AssertionError(f"JupyterLab did not answer within {seconds} s:\n{log.read_text()}")


@pytest.fixture(scope="module")
def page(jupyter):
    from playwright.sync_api import sync_playwright

    assert CHROMIUM, "CI is to have Chromium: .ci/run installs it"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.set_default_timeout(60_000)
        page.goto(f"{jupyter}/lab/tree/notebooks/{NOTEBOOK}")
        page.locator(".jp-Notebook .jp-CodeCell").first.wait_for()
        page.get_by_text("| Idle").wait_for()  # until then, "Run All Cells" does nothing
        yield page
        browser.close()


def test_the_notebook_runs_from_the_menu_to_its_end_and_its_slider_changes_the_picture(
    page, tmp_path
):
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    page.locator(".jp-OutputArea-output", has_text="This notebook took").wait_for(timeout=300_000)
    assert page.locator("[data-mime-type='application/vnd.jupyter.error']").count() == 0

    slider = page.locator(".widget-hslider [role=slider]").first
    slider.scroll_into_view_if_needed()
    page.screenshot(path=tmp_path / "before.png")
    figure = "[...document.querySelectorAll('.jp-OutputArea-output img')].pop().src"
    small, says = page.evaluate(figure), page.locator(".widget-readout").first.inner_text()
    slider.focus()
    slider.press("ArrowRight")
    page.wait_for_function(f"old => {figure} != old", arg=small)
    assert page.locator(".widget-readout").first.inner_text() != says
    page.screenshot(path=tmp_path / "after.png")
