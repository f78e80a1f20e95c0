"""The page in a real headless Chromium: nothing loaded, usable by keyboard, on a phone, in the dark."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import fxprune
from fxprune.reporting.html import write_html
from fxprune.results.record import GroupRow
from tests.support.marks import but_slow
from tests.support.reports import HOSTILE, full_report, large_report
from tests.support.sweeps import small_sweep

CHROMIUM = next((p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))), None)
DRIVER = shutil.which("chromedriver")

pytestmark = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None, reason="no chromium and chromedriver: apt-get install chromium chromium-driver"
)

NAMES = [(f"body.{i}.{part}", f"body.{i + 1}.up", 64 - i) for i in range(12) for part in ("up", "down")]
GROUPS = (
    *(GroupRow(name, "channel", (name, reader), 64, left, 1) for name, reader, left in NAMES),
    GroupRow(HOSTILE, "head", (HOSTILE,), 8, 3, 1),
)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    flags = ["--headless=new", "--disable-gpu", "--disable-dev-shm-usage", "--host-resolver-rules=MAP * ~NOTFOUND"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        flags.append("--no-sandbox")  # it refuses to run as root with one
    for flag in flags:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    browser.execute_cdp_cmd("Network.enable", {})
    browser.execute_cdp_cmd(
        "Network.emulateNetworkConditions",
        {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0},
    )
    try:
        yield browser
    finally:
        browser.quit()


@pytest.fixture(scope="module")
def report_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pages") / "report.html"
    write_html(full_report(groups=GROUPS), path)
    return path


@pytest.fixture(scope="module")
def large_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pages") / "large.html"
    write_html(large_report(400), path)
    return path


@pytest.fixture(scope="module")
def sweep_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pages") / "sweep.html"
    small_sweep().write(path)
    return path


def look(browser: Any, path: Path, *, width: int = 1000, dark: bool = False, script: bool = True) -> None:
    """Opens a page afresh."""
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500},
    )
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": not script})
    browser.get("about:blank")
    for kind in ("browser", "performance"):
        browser.get_log(kind)
    browser.get(path.as_uri())


def keys(browser: Any, *names: str) -> None:
    from selenium.webdriver import ActionChains, Keys

    actions = ActionChains(browser)
    for name in names:
        actions = actions.send_keys(getattr(Keys, name, name))
    actions.perform()


@pytest.mark.parametrize("which", but_slow(["report_file", "sweep_file"], quick=("report_file",)))
def test_it_loads_nothing_and_nothing_complains(chromium: Any, which: str, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(which)
    look(chromium, path)
    events = [json.loads(entry["message"])["message"] for entry in chromium.get_log("performance")]
    asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert asked == [path.as_uri()]
    assert chromium.get_log("browser") == []
    assert chromium.execute_script("return window.alerted === undefined")


def test_the_policy_stops_what_was_put_in(chromium: Any, report_file: Path, tmp_path: Path) -> None:
    spoiled = tmp_path / "spoiled.html"
    added = "<script>window.alerted = 1</script><style>h1 { color: rgb(1, 2, 3) }</style></body>"
    spoiled.write_text(report_file.read_text(encoding="utf-8").replace("</body>", added), encoding="utf-8")
    look(chromium, spoiled)
    assert chromium.execute_script("return window.alerted === undefined")
    assert chromium.execute_script("return getComputedStyle(document.querySelector('h1')).color") != "rgb(1, 2, 3)"
    assert len([e for e in chromium.get_log("browser") if "Content Security Policy" in e["message"]]) == 2


def shown(browser: Any) -> list[str]:
    """Returns the names of the groups that the search has left."""
    names: list[str] = browser.execute_script(
        "return [...document.querySelectorAll('.group:not([hidden]) .name')].map(e => e.textContent)"
    )
    return names


@pytest.mark.slow
def test_search_filters_groups_and_says_how_many(chromium: Any, report_file: Path) -> None:
    look(chromium, report_file)
    field = chromium.find_element("id", "query")
    assert len(shown(chromium)) == len(GROUPS)
    field.send_keys("body.11. UP")
    wanted = [g.name for g in GROUPS if all(w in " ".join((g.name, *g.layers)) for w in ("body.11.", "up"))]
    assert shown(chromium) == wanted
    assert chromium.find_element("id", "found").text == f"{len(wanted)} of {len(GROUPS)} groups"
    assert chromium.find_element("xpath", "//span[text()='body.11.up']").is_displayed()  # its branch has opened
    field.clear()
    field.send_keys("nothing like this")
    assert shown(chromium) == [] and chromium.find_element("id", "found").text.startswith("0 of")
    keys(chromium, *["BACKSPACE"] * len("nothing like this"))
    assert len(shown(chromium)) == len(GROUPS)
    field.send_keys(HOSTILE)
    assert shown(chromium) == [HOSTILE]


@pytest.mark.slow
def test_everything_opens_by_keyboard(chromium: Any, report_file: Path) -> None:
    look(chromium, report_file)
    keys(chromium, "TAB")
    active = chromium.switch_to.active_element
    assert active.text == "Skip to the content" and active.rect["y"] >= 0
    keys(chromium, "ENTER")
    assert chromium.switch_to.active_element.get_attribute("id") == "main"
    opened = 0
    for _ in range(80):
        keys(chromium, "TAB")
        active = chromium.switch_to.active_element
        if active.tag_name == "body":
            break
        outline = active.value_of_css_property("outline-style")
        assert outline == "solid", active.get_attribute("outerHTML")
        if active.tag_name == "summary":
            parent = active.find_element("xpath", "..")
            before = parent.get_attribute("open")
            keys(chromium, "ENTER")
            assert (parent.get_attribute("open") is None) != (before is None)
            if before is not None:
                keys(chromium, "ENTER")
            opened += 1
    assert opened > 20


def test_links_lead_to_groups_that_open(chromium: Any, report_file: Path) -> None:
    look(chromium, report_file)
    chromium.find_element("id", "query").send_keys("body.3")
    target = chromium.find_element("id", "g8")  # body.4.up, which the search has hidden or left closed
    chromium.execute_script("document.querySelector('a[href=\"#g8\"]').click()")
    assert target.find_element("tag name", "dl").is_displayed()


@pytest.mark.parametrize("script", [True, False])
def test_every_group_says_its_name_by_keyboard_and_by_pointer(chromium: Any, large_file: Path, script: bool) -> None:
    from selenium.webdriver import ActionChains

    names = [row.name for row in large_report(400).groups]
    names = [*names[::2], *names[1::2]]  # by kind
    try:
        look(chromium, large_file, width=360, script=script)
        blocks = chromium.find_elements("css selector", ".blocks a")
        assert [b.get_attribute("aria-label").partition(": ")[0] for b in blocks] == names
        chromium.execute_cdp_cmd("Runtime.evaluate", {"expression": "document.querySelector('.blocks a').focus()"})
        for block in blocks[:3]:
            assert chromium.switch_to.active_element == block
            assert said(chromium, block)
            keys(chromium, "TAB")
        assert not said(chromium, blocks[0])
        ActionChains(chromium).move_to_element(blocks[-1]).perform()
        assert said(chromium, blocks[-1])
    finally:
        chromium.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def said(browser: Any, block: Any) -> bool:
    """Returns whether a block's label stands at the bottom of the screen."""
    style = "getComputedStyle(arguments[0], '::after')"
    content, place = browser.execute_script(f"return [{style}.content, {style}.position]", block)
    return place == "fixed" and content == json.dumps(block.get_attribute("aria-label"), ensure_ascii=False)


def test_the_numbers_on_blocks_can_be_read(chromium: Any, report_file: Path) -> None:
    for dark in (False, True):
        look(chromium, report_file, dark=dark)
        grounds = []
        for level in range(6):
            found = chromium.execute_script(
                """const e = document.querySelector('.blocks a'); e.className = `level-${arguments[0]}`;
                const style = getComputedStyle(e); return [style.color, style.backgroundColor]""",
                level,
            )
            ink, ground = (tuple(map(float, c[c.index("(") + 1 : -1].split(",")[:3])) for c in found)
            assert contrast(ink, ground) >= 4.5, (dark, level)
            grounds.append(luminance(ground))
        assert grounds == sorted(grounds, reverse=not dark)


def colours(browser: Any) -> list[tuple[float, float, float]]:
    found: list[tuple[float, float, float]] = [
        tuple(map(float, text[text.index("(") + 1 : -1].split(",")[:3]))  # type: ignore[misc]
        for text in browser.execute_script(
            """const one = (e, k) => getComputedStyle(e)[k], q = (s) => document.querySelector(s);
            return [one(document.body, 'backgroundColor'), one(q('section'), 'backgroundColor'),
              one(q('section'), 'color'),
              one(q('.lead'), 'color'), one(q('nav a'), 'color'), one(q('.chart .fill-after'), 'fill'),
              one(q('.chart .fill-removed'), 'fill'), one(q('.chart .stroke-edge'), 'stroke')]"""
        )
    ]
    return found


def luminance(colour: tuple[float, float, float]) -> float:
    """Returns the relative luminance of WCAG 2."""
    parts = [c / 255 for c in colour]
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def contrast(a: tuple[float, float, float], b: tuple[float, float, float]) -> float:
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def test_light_and_dark_differ_and_both_have_contrast(chromium: Any, report_file: Path) -> None:
    pages = []
    for dark in (False, True):
        look(chromium, report_file, dark=dark)
        paper, card, ink, muted, link, *shapes = colours(chromium)
        for ground in (paper, card):
            assert all(contrast(ground, text) >= 4.5 for text in (ink, muted, link))
        assert all(contrast(card, shape) >= 3 for shape in shapes)
        assert (luminance(card) < 0.5) == dark
        pages.append((paper, card, ink, chromium.get_screenshot_as_png()))
    assert all(light != dark for light, dark in zip(*pages, strict=True))


@pytest.mark.parametrize("which", but_slow(["report_file", "large_file", "sweep_file"], quick=("report_file",)))
@pytest.mark.parametrize("width", [360, 768, 1400])
def test_it_fits_the_screen(chromium: Any, which: str, width: int, request: pytest.FixtureRequest) -> None:
    look(chromium, request.getfixturevalue(which), width=width)
    chromium.execute_script("for (const e of document.querySelectorAll('details')) e.open = true")
    assert chromium.execute_script("return document.documentElement.scrollWidth") <= width
    sizes = chromium.execute_script(
        """return [...document.querySelectorAll('.chart')].map((e) => {
          const box = e.querySelector('svg').getBoundingClientRect();
          const text = [...e.querySelectorAll('text')].map((t) => t.getBoundingClientRect());
          return [e.className, box.width, box.height, Math.min(...text.map((t) => t.left)),
            Math.max(...text.map((t) => t.right)),
            Math.min(...text.map((t) => t.height))];
        })"""
    )
    kind = "narrow" if width < 736 else "wide"
    visible = [size for size in sizes if size[1]]
    assert len(visible) == len(sizes) / 2 > 0 and all(kind in size[0] for size in visible)
    for _, wide, high, left, right, text in visible:
        assert wide > 250 and high > 80 and left >= 0 and right <= width and text >= 10


def test_charts_fields_and_regions_have_names(chromium: Any, report_file: Path) -> None:
    look(chromium, report_file)
    chromium.execute_script("for (const e of document.querySelectorAll('details')) e.open = true")
    tree = chromium.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    seen: dict[str, list[str]] = {}
    for node in tree:
        if not node.get("ignored"):
            role = node.get("role", {}).get("value", "")
            seen.setdefault(role, []).append(str(node.get("name", {}).get("value", "")))
    for role in ("image", "link", "button", "searchbox", "region", "table", "heading", "navigation"):
        assert seen.get(role), role
        assert all(name.strip() for name in seen[role]), role
    assert "Seconds by stage" in seen["image"] and "Search groups, layers and kinds" in seen["searchbox"]
    assert seen["main"] and seen["banner"]


def test_without_scripts_everything_is_still_there(chromium: Any, report_file: Path) -> None:
    try:
        look(chromium, report_file, script=False)
        assert len(chromium.find_elements("css selector", ".group")) == len(GROUPS)
        assert not chromium.find_element("id", "query").is_displayed()
    finally:
        chromium.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


@pytest.mark.slow
def test_a_compiled_models_page_opens(chromium: Any, tmp_path: Path) -> None:
    import torch

    from tests.models.small import NETWORKS

    torch.manual_seed(0)
    build, example = NETWORKS["transformer"]
    pruned = fxprune.compile(build().double(), [example()], 0.6, recover=None, progress=False)
    fxprune.write_html(pruned, tmp_path / "report.html")
    look(chromium, tmp_path / "report.html")
    assert chromium.get_log("browser") == []
    assert "Verified" in chromium.find_element("css selector", "[aria-labelledby=certificate] .seal").text
