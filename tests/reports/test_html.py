"""The HTML page: what it holds, and what it does in a real browser."""

import math
import shutil
import struct
import sys
from base64 import b64decode

import pytest

from ckpt_doctor.errors import MissingExtra
from ckpt_doctor.repair_result import LeftLayer, RepairedLayer, RepairResult, Spread, Statistics
from ckpt_doctor.reports import REPORTS, html
from ckpt_doctor.reports._channel_bytes import encoded, fitting
from ckpt_doctor.reports.interface import Style
from ckpt_doctor.result import AuditResult, ChannelValues
from tests.reports.results import ALL_LEVELS, EVIL, NOTHING_FOUND, checkpoint, finding, with_values

jinja2 = pytest.importorskip("jinja2")

PLAIN = Style()
MB = 1_000_000
ONE = Statistics(Spread(0, 0, 0), Spread(1, 1, 1))
REPAIR = RepairResult(
    checkpoint="m.h5",
    output="fixed.h5",
    method="layerwise",
    samples=512,
    batches=8,
    layers=(
        RepairedLayer("bn1", "layerwise", None, ONE, 0.01, 2e-8, None, ChannelValues((0.5, 1.5), (1.0, 2.0))),
        RepairedLayer(
            "bn2",
            "copy",
            ONE,
            ONE,
            None,
            None,
            ChannelValues((0.0, 0.0), (1.0, 1.0)),
            ChannelValues((3.0, 4.0), (1.0, 2.0)),
        ),
    ),
    left=(LeftLayer("bn3", "lies in a loop"),),
    unchanged_variables=7,
    metric=None,
    sha256=(),
    seconds=1.5,
    dry_run=False,
    complete=False,
)


def decoded(text):
    data = b64decode(text)
    return [struct.unpack(">f", data[i : i + 3] + b"\0")[0] for i in range(0, len(data), 3)]


def test_three_bytes_keep_four_digits_and_everything_that_is_no_number():
    values = [0.0, -0.0, 1.0, -3.14159265, 1e-30, 1e30, 3.4028235e38, 123456.789]
    for value, back in zip(values, decoded(encoded(values)), strict=True):
        assert math.isclose(value, back, rel_tol=2**-16)
    back = decoded(encoded([math.nan, math.inf, -math.inf, 1e39]))
    assert [math.isnan(one) for one in back] == [True, False, False, False]
    assert back[1:] == [math.inf, -math.inf, math.inf]


def test_what_does_not_fit_is_left_out_the_healthy_first():
    vector = (1.0,) * 100_000
    series = [("stored", ChannelValues(vector, vector))]
    kept, left_out = fitting([("a", False, series), ("b", False, series), ("c", False, series), ("d", True, series)])
    assert (set(kept), left_out) == ({"d", "a"}, 2)


def test_the_page_of_200_layers_of_1000_channels_is_small():
    page = REPORTS["html"](AuditResult((with_values(200, 1024),)), PLAIN)
    assert len(page.encode()) < 3 * MB
    assert page.count("data-plot=") + (0 if "left out" not in page else 1) >= 100


def test_everything_is_said_without_a_script_and_nothing_is_fetched():
    page = REPORTS["html"](ALL_LEVELS, PLAIN)
    for text in (
        "models/model.ckpt-7",
        "BN301",
        "is not there",
        "could be two things",
        "Usual cause",
        "False positives",
        "Repair is unsafe when",
        "no longer needed",
    ):
        assert text in page
    page = page.replace('"http://www.w3.org/2000/svg"', "")  # A name, never an address.
    for source in ("http://", "https://", "src=", "@import", "url("):
        assert source not in page
    assert "default-src 'none'" in page


def test_names_stay_names():
    page = REPORTS["html"](ALL_LEVELS, PLAIN)
    assert "<b>" not in page
    assert "&lt;b&gt;" in page
    assert "\x1b" not in page
    assert EVIL not in page


def test_quiet_leaves_out_the_healthy():
    assert ">healthy<" in REPORTS["html"](ALL_LEVELS, PLAIN)
    assert ">healthy<" not in REPORTS["html"](ALL_LEVELS, Style(detail="less"))


def test_without_the_extra_the_command_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    monkeypatch.setattr(html.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r'pip install "jinja2>=3\.1"'):
        REPORTS["html"](NOTHING_FOUND, PLAIN)


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    """A real Chromium; tests that need it skip where it is not."""
    webdriver = pytest.importorskip("selenium.webdriver")
    from selenium.webdriver.chrome.service import Service

    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    chromedriver = shutil.which("chromedriver")
    if chromium is None or chromedriver is None:
        pytest.skip("Chromium or its driver is not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync --window-size=1280,1000"
    ).split():
        options.add_argument(flag)
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('profile')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=Service(chromedriver))
    yield browser
    browser.quit()


@pytest.fixture
def show(driver, tmp_path):
    """Open a page; afterwards nothing may have gone wrong in it."""

    def show(page):
        (tmp_path / "page.html").write_text(page, encoding="utf-8")
        driver.get_log("browser")
        driver.get((tmp_path / "page.html").as_uri())
        return driver

    yield show
    assert driver.get_log("browser") == []


# Asked in the page: to ask of 200 rows one by one from here takes seconds.
VISIBLE = """
const all = [...document.querySelectorAll(arguments[0])]
const visible = all.filter((element) => element.checkVisibility({ visibilityProperty: true }))
"""


def all_of(driver, selector):
    return driver.execute_script(f"{VISIBLE} return visible", selector)


def texts_of(driver, selector):
    return driver.execute_script(f"{VISIBLE} return visible.map((element) => element.innerText)", selector)


@pytest.mark.browser
def test_the_page_of_200_layers_opens_sorts_filters_and_draws(show):
    sick = with_values(200, 512, status="never-updated")
    sick = AuditResult(
        (
            checkpoint(
                [finding("BN201", "never-updated", "block0/bn")],
                **{name: getattr(sick, name) for name in ("path", "batch_norm_layers", "values")},
            ),
        )
    )
    driver = show(REPORTS["html"](sick, PLAIN))
    names = lambda: [text.splitlines()[0] for text in texts_of(driver, "tbody tr th")]  # noqa: E731
    assert len(names()) == 200
    search = all_of(driver, "input[type=search]")[0]
    search.send_keys("BLOCK19")
    assert names() == [f"block{n}/bn" for n in (19, *range(190, 200))]
    assert all_of(driver, ".tools output")[0].text == "11 of 200 layers"
    head = all_of(driver, "thead th button")[0]
    head.click()
    head.click()
    assert names()[0] == "block199/bn"
    assert driver.find_element("css selector", "thead th").get_attribute("aria-sort") == "descending"
    search.clear()
    search.send_keys(" ")
    driver.find_element("css selector", "select").send_keys("never-updated")
    assert names() == ["block0/bn"]
    assert not all_of(driver, "svg")
    all_of(driver, "button.open")[0].click()
    plots = all_of(driver, "svg")
    assert len(plots) == 2
    assert len(plots[0].find_elements("css selector", "circle")) == 512
    assert len(plots[0].find_elements("css selector", "rect")) == 512
    all_of(driver, "button.open")[0].click()
    assert not all_of(driver, "svg")


@pytest.mark.browser
def test_numbers_sort_as_numbers(show):
    driver = show(REPORTS["html"](AuditResult((with_values(12, 3),)), PLAIN))
    column = next(i for i, head in enumerate(all_of(driver, "thead th")) if head.text.startswith("mean min"))
    head = all_of(driver, "thead th button")[column]
    for down in (False, True):
        head.click()
        shown = [float(row.find_elements("css selector", "th,td")[column].text) for row in all_of(driver, "tbody tr")]
        assert shown == sorted(shown, reverse=down)


@pytest.mark.browser
def test_the_keyboard_reaches_everything(show):
    from selenium.webdriver.common.keys import Keys

    driver = show(REPORTS["html"](AuditResult((with_values(3, 8),)), PLAIN))
    reached = []
    for _ in range(40):
        driver.switch_to.active_element.send_keys(Keys.TAB)
        active = driver.switch_to.active_element
        reached.append((active.tag_name, active.text))
        if active.text.endswith("block2/bn"):
            active.send_keys(Keys.ENTER)
            break
    assert ("a", "Skip to the findings") in reached
    assert ("button", "Dark page") in reached
    assert ("input", "") in reached
    driver.switch_to.active_element.send_keys(Keys.TAB)
    plot = driver.switch_to.active_element
    assert plot.tag_name == "svg"
    assert plot.get_attribute("aria-label").startswith("mean over 8 channels; stored: ")
    plot.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    output = driver.find_element("css selector", "figure output")
    assert output.text.startswith("channel 1: stored ")
    plot.send_keys(Keys.END)
    assert output.text.startswith("channel 7: ")


@pytest.mark.browser
def test_the_theme_is_that_of_the_system_until_it_is_chosen(show):
    driver = show(REPORTS["html"](NOTHING_FOUND, PLAIN))
    paper = lambda: driver.execute_script("return getComputedStyle(document.body).backgroundColor")  # noqa: E731
    assert paper() == "rgb(255, 255, 255)"
    driver.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    )
    assert paper() == "rgb(20, 23, 27)"
    driver.find_element("id", "theme").click()
    assert paper() == "rgb(255, 255, 255)"
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def contrast(a, b):
    """Return the contrast ratio of two `rgb(…)` colours, as WCAG 2 defines it."""

    def luminance(color):
        parts = [int(part) / 255 for part in color[color.index("(") + 1 : -1].split(",")[:3]]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(a), luminance(b)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.browser
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_can_be_read_in_both_themes(show, theme):
    driver = show(REPORTS["html"](ALL_LEVELS, PLAIN))
    colors = driver.execute_script(
        """
        document.documentElement.dataset.theme = arguments[0];
        const behind = (element) => {
          const color = getComputedStyle(element).backgroundColor;
          return color !== "rgba(0, 0, 0, 0)" ? color : behind(element.parentElement);
        };
        return [...document.querySelectorAll("p, h1, h2, h4, th, td, summary, code, pre, .badge, a, button, .dim")]
          .filter((element) => element.checkVisibility())
          .map((element) => [element.className, getComputedStyle(element).color, behind(element)]);
        """,
        theme,
    )
    assert len(colors) > 50
    for name, ink, paper in colors:
        assert contrast(ink, paper) >= 4.5, (name, ink, paper)


@pytest.mark.browser
def test_every_finding_of_all_levels_is_on_the_page(show):
    driver = show(REPORTS["html"](ALL_LEVELS, PLAIN))
    assert driver.title == "Findings in 3 of 4 checkpoints"
    assert [badge.text for badge in all_of(driver, ".finding h4 .badge")] == [
        "error",
        "error",
        "warning",
        "note",
        "note",
    ]
    all_of(driver, "a[href='#c2']")[0].click()
    assert driver.current_url.endswith("#c2")


@pytest.mark.browser
def test_a_repair_shows_before_and_after(show):
    driver = show(html.render_repair(REPAIR, PLAIN))
    assert "bn3: lies in a loop" in driver.page_source.replace("</code>", "")
    for button in all_of(driver, "button.open"):
        button.click()
    keys = [[key.text for key in figure.find_elements("css selector", ".key")] for figure in all_of(driver, "figure")]
    assert keys == [["after"], ["after"], ["before", "after"], ["before", "after"]]
    driver.execute_script("document.querySelector('details').open = true")
    assert "lies in a loop" in driver.find_element("css selector", "details").text
