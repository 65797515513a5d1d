"""The live notebooks in a real browser: JupyterLab is started and headless Chromium driven through each.

A test waits for what it needs as long as a kernel is at work, however slow the machine: it fails when a cell ends in an error, a
kernel has died, or nothing has been computed for a while and what it waits for is not there.

Screenshots stay in screenshots/, which git ignores. Without Chromium the tests are skipped and say so.
"""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import NamedTuple

import nbformat
import psutil
import pytest

ROOT = Path(__file__).parents[2]
SCREENSHOTS = ROOT / "screenshots"
CHROMIUM = shutil.which("chromium")
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
]
SHORT = {"start_here": {"epochs: int = 90": "epochs: int = 4"}, "npp_in_your_model": {"epochs: int = 40": "epochs: int = 4"}}
NAMES = ("start_here", "npp_in_your_model", "explore_grouping", "explore_schedule", "explore_sampling", "explore_runs")
OVERRIDES = {
    "@jupyterlab/notebook-extension:tracker": {"windowingMode": "none", "autoStartDefaultKernel": True},
    "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False},
}
QUIET_SECONDS, WORK_SECONDS = 60, 2.0  # at rest: less than this much processor time in that time; idle kernels take a third of it
HANGS = 1_200_000  # ms; what the browser itself waits for: reached by nothing but a hang
STEP = 500  # ms between two looks

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM, reason="chromium is not installed: apt-get install chromium runs the browser tests"),
]


def copy_notebooks(folder):
    """The notebooks without outputs, the two trainings short."""
    for name in NAMES:
        notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
        for cell in (cell for cell in notebook.cells if cell.cell_type == "code"):
            cell.outputs, cell.execution_count = [], None
            for long, short in SHORT.get(name, {}).items():
                cell.source = cell.source.replace(long, short)
        nbformat.write(notebook, folder / f"{name}.ipynb")


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The address of a JupyterLab with settings, kernels and a results home of its own."""
    folder = tmp_path_factory.mktemp("lab")
    for name in ("notebooks", "settings", "home/results"):
        (folder / name).mkdir(parents=True)
    copy_notebooks(folder / "notebooks")
    (folder / "settings" / "overrides.json").write_text(json.dumps(OVERRIDES))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = {name: str(folder / name) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTERLAB_WORKSPACES_DIR")}
    environment = {**os.environ, **own, "NPPKIT_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"}
    environment.pop("NPPKIT_BATCH", None)
    options = ["--no-browser", "--allow-root", "--IdentityProvider.token=", f"--port={port}", "--ServerApp.port_retries=0"]
    options += [f"--ServerApp.root_dir={folder / 'notebooks'}", f"--LabApp.app_settings_dir={folder / 'settings'}"]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen([sys.executable, "-m", "jupyterlab", *options], env=environment, stdout=log, stderr=log)
    try:
        yield Lab(wait_for(f"http://127.0.0.1:{port}", server, folder / "log"), server.pid)
    finally:
        server.terminate()
        server.wait(30)


class Lab(NamedTuple):
    """A JupyterLab: its address, and the process whose kernels compute."""

    address: str
    pid: int

    def work(self):
        """Processor seconds of the server and of everything that it has started."""
        server, total = psutil.Process(self.pid), 0.0
        for process in [server, *server.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                total += sum(process.cpu_times()[:2])
        return total


class Waiting:
    """Whether what a test waits for is still to be expected: something has been computed within the last minute."""

    def __init__(self, lab):
        self.lab, self.since, self.work = lab, time.monotonic(), lab.work()

    def goes_on(self):
        now, work = time.monotonic(), self.lab.work()
        if work - self.work > WORK_SECONDS or work < self.work:
            self.since, self.work = now, work
        return now - self.since < QUIET_SECONDS


def wait_for(address, server, log):
    """The address, once it answers."""
    for _ in range(240):
        assert server.poll() is None, log.read_text()[-2000:]
        try:
            urllib.request.urlopen(f"{address}/api").close()
            return address
        except OSError:
            time.sleep(0.5)
    raise AssertionError(f"JupyterLab does not answer: {log.read_text()[-2000:]}")


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make env installs it")
    with api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=QUIET)
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser, lab):
    page = browser.new_page(viewport={"width": 1400, "height": 900})
    page.set_default_timeout(HANGS)
    page.lab = lab
    yield page
    page.close()


def run_all(page, lab, name):
    """Open the notebook, run all its cells, and return its live section. No cell may end in an error."""
    page.goto(f"{lab.address}/lab/tree/{name}.ipynb?reset")
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for()
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_text("Run All Cells", exact=True).click()
    cells = page.locator(".jp-Notebook .jp-CodeCell .jp-InputArea-prompt:visible")  # a folded cell has none
    failed = page.locator('.jp-OutputArea-output[data-mime-type="application/vnd.jupyter.error"]')
    finished = page.locator(".jp-Notebook .jp-CodeCell .jp-InputArea-prompt:visible", has_text=re.compile(r"\[\d+\]"))
    waiting = Waiting(lab)
    while finished.count() < cells.count() and not failed.count():
        assert waiting.goes_on(), f"{finished.count()} of {cells.count()} cells have run, and nothing is computed any more"
        page.wait_for_timeout(STEP)
    assert failed.count() == 0, failed.first.inner_text()[-2000:]
    assert page.locator(".jp-RenderedImage img").count() > 0, "no static figure"
    section = page.locator(".jp-Notebook .jp-CodeCell").last.locator(".jp-OutputArea-output").first
    section.locator(".noUi-handle").first.wait_for()
    section.scroll_into_view_if_needed()
    return section


def row(section, label):
    """The control with that label."""
    return section.locator(".widget-inline-hbox", has=section.page.locator(f'label:text-is("{label}")'))


def move(section, label, key="ArrowRight", times=1):
    """Move a slider with the keyboard."""
    handle = row(section, label).locator(".noUi-handle")
    for _ in range(times):
        handle.press(key)


def fill(section, label, value):
    """Type into a field."""
    box = row(section, label).locator("input")
    box.fill(value)
    box.press("Enter")


def picture(section, index=0):
    """The picture's data; it changes when another is drawn."""
    return section.locator(".widget-html img").nth(index).get_attribute("src")


def wait_until(page, condition, what):
    waiting = Waiting(page.lab)
    while not condition():
        assert waiting.goes_on(), f"never happened: {what}"
        page.wait_for_timeout(100)


def moves_the_figure(section, label, key="ArrowRight"):
    """A slider moved by the keyboard changes the figure."""
    before = picture(section)
    move(section, label, key)
    wait_until(section.page, lambda: picture(section) != before, f"a change of the figure after {label} moved")


def keep(page, section, name):
    """Screenshots of the page's top and of the live section, for people to look at."""
    SCREENSHOTS.mkdir(exist_ok=True)
    section.screenshot(path=SCREENSHOTS / f"{name}_live.png")
    page.locator(".jp-Notebook .jp-Cell").first.scroll_into_view_if_needed()
    page.screenshot(path=SCREENSHOTS / f"{name}.png")


def press(section, label):
    """Press the button of that text with the keyboard, to start once it is on: a key on one that is off is lost.

    Its accessible name begins with the icon's glyph: no role finds it.
    """
    section.locator("button:enabled", has_text=re.compile(rf"^\s*{label}\s*$")).press("Enter")


def stop(section):
    """Click Stop and wait for the end. Where it came first, the button is off: a key would go to another one, and begin anew."""
    section.locator("button", has_text=re.compile(r"^\s*Stop\s*$")).evaluate("button => button.click()")
    section.get_by_text(re.compile("^(stopped|done)$")).wait_for()


CONTROLS = "input, select, textarea, button, .noUi-handle, [contenteditable='true']"  # the last: a slider's number
FOCUSED = f'live => [...live.querySelectorAll("{CONTROLS}")].indexOf(document.activeElement)'
REACHABLE = f'live => [...live.querySelectorAll("{CONTROLS}")].flatMap((c, i) => c.disabled || !c.offsetParent ? [] : [i])'


def all_reached_by_tab(section):
    """Tab goes from the first control through all others in order, leaving out those that are off."""
    on = section.evaluate(REACHABLE)
    section.locator(CONTROLS).nth(on[0]).focus()
    for control in on:
        assert section.evaluate(FOCUSED) == control, section.locator(CONTROLS).nth(control).evaluate("c => c.outerHTML")
        section.page.keyboard.press("Tab")


@pytest.fixture
def section(lab, page, request):
    """The live section of the notebook that the test is called after; in the end Tab reaches all its controls."""
    name = request.node.name.removeprefix("test_")
    section = run_all(page, lab, name)
    yield section
    keep(page, section, name)
    all_reached_by_tab(section)


def test_start_here(section):
    """The method, a training on the spot, and a prediction that follows the sliders."""
    moves_the_figure(section, "Position")
    moves_the_figure(section, "Patch side p")


def test_npp_in_your_model(section):
    """The check at p = 1 passes; a training draws its curve, stops, and explains a lambda that is none."""
    assert section.page.get_by_text("the patch loss and its gradients are the model's own").count()
    move(section, "Epochs of 10 steps", "ArrowLeft", times=3)
    press(section, "Train")
    section.locator(".widget-html img").wait_for()
    stop(section)
    fill(section, "Lambda", "3")
    press(section, "Train")
    section.get_by_text("outside (0, 1)").wait_for()


def test_explore_grouping(section):
    """Another position, another patch side, another image; a letter at a slider is no command to JupyterLab."""
    move(section, "Position", "m")
    moves_the_figure(section, "Position")
    moves_the_figure(section, "Patch side p")
    moves_the_figure(section, "Image")
    assert "K = 16" in section.inner_text()


def test_explore_schedule(section):
    """Sliders redraw the schedule, a bad lambda is explained beside its field, and the preset is saved."""
    moves_the_figure(section, "Epochs T", "ArrowLeft")
    for value, answer in (("2", "outside (0, 1)"), ("2/3", "p = 8 in epochs 0 to 88")):
        fill(section, "Lambda", value)
        section.get_by_text(answer).first.wait_for()
    press(section, "Save as preset")
    section.get_by_text("saved; run it with").wait_for()


def test_explore_sampling(section):
    """Two checkpoints draw the same seed row by row, each its own images; Stop stops; completion."""
    move(section, "Images", "Home")
    press(section, "Sample")
    section.get_by_text("8 of 8 rows drawn").nth(1).wait_for()
    section.get_by_text("done", exact=True).wait_for()
    assert picture(section, 0) != picture(section, 1)
    before = picture(section)
    move(section, "Guidance scale", times=3)
    move(section, "Pause a row (s)", "End")
    press(section, "Sample")
    wait_until(section.page, lambda: picture(section) != before, "a row of another picture")
    stop(section)
    move(section, "Images", "End")
    move(section, "Rows given", times=4)
    move(section, "Pause a row (s)", "Home")
    press(section, "Sample")
    section.get_by_text("10 images of").first.wait_for()
    section.get_by_text("done", exact=True).wait_for()


def test_explore_runs(section):
    """With the keyboard alone: ticked runs get curves, the table sorts, menus choose, Follow follows and stops."""
    for box in section.get_by_role("checkbox").all():
        box.press("Space")
    section.locator('img[alt*="curves of GPT-L_ntp_seed0, GPT-L_npp"], img[alt*="curves of GPT-L_npp"]').wait_for()
    table = section.locator(".widget-vbox", has=section.page.get_by_role("button", name="preset")).last
    assert table.evaluate("t => t.scrollWidth <= t.clientWidth"), "the table scrolls sideways"
    section.get_by_role("button", name="NLL").press("Enter")
    section.get_by_role("button", name="NLL ▲").wait_for()
    row(section, "Curves over").locator("select").press("ArrowDown")
    section.locator('img[alt$="over minutes"]').wait_for()
    row(section, "Samples of").locator("select").press("ArrowDown")
    section.locator('img[alt*="samples of"]').wait_for()
    move(section, "Follow every (s)", "Home")
    press(section, "Follow")
    section.locator(".widget-html-content", has_text=re.compile("^running$")).wait_for()
    press(section, "Stop")
    section.locator(".widget-html-content", has_text=re.compile("^stopped$")).wait_for()
