"""The page of a report, opened from disk in a real browser that is told to reach nothing else."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from matplotlib.image import imread

from replaybench.baseline import config_record, load_baseline
from replaybench.diagnostics import Rows
from replaybench.plan import SweepSpec
from replaybench.record import SweepFolder
from replaybench.report import build_report
from replaybench.spec import RunSpec

CHROMIUM, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
LEVELS = ("fresh", "stale")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (CHROMIUM.exists() and DRIVER.exists()),
        reason="needs chromium and chromedriver: apt-get install chromium chromium-driver",
    ),
]


def _runs(spec: SweepSpec) -> Iterator[RunSpec]:
    for name in spec.baselines:
        baseline = load_baseline(name)
        levels = LEVELS if baseline.declaration.updates_policy else (None,)
        for lineage in spec.lineages:
            for level in levels:
                yield RunSpec(
                    dataset="door",
                    data_folder="nowhere",
                    card_sha256="0" * 64,
                    task="door-open",
                    lineage=lineage,
                    data_format="arrow",
                    level=level,
                    replay_ratio=4.0 if level else None,
                    baseline=name,
                    baseline_path=None,
                    baseline_sha256=baseline.digest,
                    config=config_record(baseline.config()),
                    seed=0,
                    train=spec.train,
                    evaluate=spec.evaluate,
                )


def _rows(run: RunSpec, number: int) -> Rows:
    rows = Rows()
    if run.level:
        rows.add(0, "replay_ratio_realised", 4.0)
        rows.add(0, "replay_steps", 100)
        for update in (1, 8):
            rows.add(update, "ess_token_raw", 0.9)
            rows.add(update, "grad_norm", 0.1 * update)
        rows.add(8, "end_kl_k3_behaviour", 0.1)
        rows.add(8, "end_kl_start", 0.2)
    rows.add(8 if run.level else 0, "success", 0.3 + 0.37 * number % 0.5)
    return rows


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a tiny sweep that nobody trained."""
    folder = SweepFolder(tmp_path_factory.mktemp("sweep"))
    spec = SweepSpec(
        name="tiny",
        datasets=("door",),
        lineages=(0, 1, 2),
        levels=LEVELS,
        replay_ratios=(4.0,),
        baselines=("zero", "ppo_clip", "gipo", "sapo"),
        reference="ppo_clip",
    )
    runs = list(_runs(spec))
    folder.claim({"sweep": spec.model_dump(mode="json"), "runs": [run.model_dump(mode="json") for run in runs]})
    for number, run in enumerate(runs):
        manifest = {"run_id": run.run_id(), "wall_s": 1.0, "host": {"cores": 2}, "versions": {"torch": "2"}}
        folder.write_result(run, _rows(run, number), manifest)
    return build_report(folder).index


@pytest.fixture(scope="module")
def browser(index: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Chromium on the page, recording its console and every request."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    profile = tmp_path_factory.mktemp("profile")
    for flag in (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--no-first-run",
        "--window-size=1200,2000",
        f"--user-data-dir={profile}",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(DRIVER)))
    driver.get(index.as_uri())
    yield driver
    driver.quit()


def test_the_page_opens_without_errors_and_without_a_network(browser: Any, index: Path) -> None:
    """The console is empty, and the only request is for the page itself (an inline icon is no request)."""
    assert browser.title == "tiny - replaybench report"
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
    # The browser's own start page makes requests too.
    requested = {request["request"]["url"] for request in sent if request["documentURL"] == index.as_uri()}
    assert index.as_uri() in requested
    assert {url for url in requested if not url.startswith("data:")} == {index.as_uri()}


def _open(browser: Any, tab: str) -> None:
    """Clicks a tab of the navigation, as a reader does."""
    browser.execute_script(f"document.querySelector('nav a[href=\"#{tab}\"]').click()")
    browser.execute_async_script("requestAnimationFrame(() => setTimeout(arguments[0], 0))")


def test_a_click_on_each_tab_shows_its_section_alone(browser: Any, tmp_path: Path) -> None:
    """The page opens on the verdict; every tab leads to one visible section whose figures have a size and a picture."""
    tabs = browser.execute_script("return [...document.querySelectorAll('nav a')].map(tab => tab.hash.slice(1))")
    shown = "return [...document.querySelectorAll('main > section')].filter(e => e.offsetParent).map(e => e.id)"
    assert browser.execute_script(shown) == ["overview"] == tabs[:1]
    sizes = []
    for tab in tabs:
        _open(browser, tab)
        assert browser.execute_script(shown) == [tab]
        current = "return document.querySelector('nav a[aria-current=page]').hash"
        assert browser.execute_script(current) == f"#{tab}"
        browser.save_screenshot(str(tmp_path / f"{tab}.png"))
        assert imread(tmp_path / f"{tab}.png").std() > 0.02, "an empty page has one colour"
        browser.execute_script("document.querySelectorAll('details').forEach(part => { part.open = true; })")
        sizes += browser.execute_script(
            f"return [...document.querySelectorAll('#{tab} figure svg')].map(e => e.getBoundingClientRect())"
            ".map(box => [box.width, box.height])"
        )
    assert len(sizes) >= 8
    assert all(width > 300 and height > 100 for width, height in sizes)
    assert browser.get_log("browser") == []


def test_a_click_sorts_a_table_and_a_second_one_turns_it(browser: Any) -> None:
    """Numbers sort as numbers: by the value behind the text, up and then down; the heading says which."""
    _open(browser, "differences")
    heading = "document.querySelector('#table-glance thead th:nth-child(2)')"
    column = (
        "return [...document.querySelectorAll('#table-glance tbody td:nth-child(2)')].map(e => Number(e.dataset.sort))"
    )
    before = browser.execute_script(column)
    browser.execute_script(f"{heading}.firstElementChild.click()")
    assert browser.execute_script(column) == sorted(before)
    assert browser.execute_script(f"return {heading}.getAttribute('aria-sort')") == "ascending"
    browser.execute_script(f"{heading}.firstElementChild.click()")
    assert browser.execute_script(column) == sorted(before, reverse=True)
    assert len(set(before)) == 3


def test_a_telephone_scrolls_the_figures_and_never_the_page(browser: Any) -> None:
    """At 400 px the page is no wider than the window; wide tables and figures scroll on their own."""
    _open(browser, "overview")
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 400, "height": 900, "deviceScaleFactor": 1, "mobile": True}
    )
    try:
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 400
        assert browser.execute_script("return document.querySelector('figure svg').getBoundingClientRect().width") > 500
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_filters_leave_the_rows_that_fit(browser: Any) -> None:
    """A choice and a word both count; the number of rows is said; emptied, every row is back."""
    _open(browser, "freshness")
    bar = "document.querySelector('#table-levels').parentElement.previousElementSibling"
    shown = (
        "return [...document.querySelectorAll('#table-levels tbody tr')].filter(row => !row.hidden)"
        ".map(row => [...row.cells].map(cell => cell.textContent))"
    )
    enter = f"const field = {bar}.querySelector(arguments[0]); field.value = arguments[1];" + (
        "field.dispatchEvent(new Event('input', { bubbles: true }))"
    )
    everything = browser.execute_script(shown)
    browser.execute_script(enter, "select[aria-label=baseline]", "gipo")
    browser.execute_script(enter, "input", "STALE")
    rows = browser.execute_script(shown)
    assert rows == [row for row in everything if row[3] == "gipo" and "stale" in row]
    assert 0 < len(rows) < len(everything)
    assert browser.execute_script(f"return {bar}.querySelector('output').value") == (
        f"{len(rows)} of {len(everything)} rows"
    )
    browser.execute_script(enter, "select[aria-label=baseline]", "")
    browser.execute_script(enter, "input", "")
    assert browser.execute_script(shown) == everything


def test_pointing_at_a_dot_shows_its_run(browser: Any) -> None:
    """By mouse, with the value and the run's id; by arrow keys from one mark to the next; Escape closes it."""
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    _open(browser, "overview")
    plot = browser.find_element("css selector", "#\\31-success .plot")
    # The dots of an arm come before its mean; this run is the tenth of `_runs`: .3 + 9 x .37 mod .5 is .63.
    ActionChains(browser).move_to_element(plot.find_elements("css selector", ".mark")[0]).perform()
    tip = browser.find_element("css selector", "#tip")
    assert tip.is_displayed()
    assert tip.text.startswith("gipo, door, fresh, replay ratio 4, lineage 0\nvalue 0.63")
    assert "door-L0-fresh-R4-gipo-s0-" in tip.text
    plot.send_keys(Keys.ARROW_RIGHT)
    first = tip.text
    plot.send_keys(Keys.ARROW_RIGHT)
    assert tip.text != first
    plot.send_keys(Keys.ESCAPE)
    assert not tip.is_displayed()


def test_figures_follow_the_theme(browser: Any) -> None:
    """On a dark page the paper of a figure is the page's, and a baseline keeps its hue in a lighter tone."""
    paper = "return getComputedStyle(document.querySelector('#\\\\31-success svg path')).fill"
    assert browser.execute_script(paper) == "rgb(255, 255, 255)"
    dark = [{"name": "prefers-color-scheme", "value": "dark"}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": dark})
    try:
        assert browser.execute_script(paper) == "rgb(20, 23, 26)"
        assert browser.execute_script("return getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 26)"
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
