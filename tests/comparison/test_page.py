"""leaderboard.html in a browser."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext, Page

from genre_lightning.comparison.leaderboard import compare, write_leaderboard
from tests.comparison.written_runs import HOSTILE, write_run
from tests.pages import CONTRAST, not_isolated


@pytest.fixture(scope="module")
def pages(sweep: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Leaderboards of the sweep ("grid"), of 200 runs over three keys ("many"), of one run ("one").

    "branches" has two lists of branches, one of them long, and two learning rates.
    """
    folder = tmp_path_factory.mktemp("pages")
    hostile = tmp_path_factory.mktemp("hostile")
    shutil.copytree(sweep, hostile / "sweep")
    write_run(
        hostile / "sweep" / "<i>1&",
        {"model.dropout": 0.1, "optimizer.lr": HOSTILE.replace("/", "")},
    )
    many = tmp_path_factory.mktemp("many")
    for number in range(200):
        settings = {
            "optimizer.lr": 10 ** (-4 + number % 37 / 18),
            "model.dropout": number % 11 / 20,
            "model.kind": ("a", "b" * 70)[number % 2],
        }
        values = [0.2 + (number * 7919 % 200) / 1000 * epoch / 30 for epoch in range(30)]
        write_run(
            many / f"job{number}", settings, values, status="failed" if number == 7 else "completed"
        )
    one = tmp_path_factory.mktemp("one")
    write_run(one / "run", {}, [0.5])
    branches = tmp_path_factory.mktemp("branches")
    for names in ("[title_tfidf,poster_resnet,synopsis_minilm,synopsis_gemma]", "[title_tfidf]"):
        for lr in (0.1, 0.2):
            settings = {"model.kind": names, "optimizer.lr": lr}
            write_run(branches / f"{len(names)},{lr}", settings)
    sources = {"grid": hostile, "many": many, "one": one, "branches": branches}
    for name, source in sources.items():
        write_leaderboard(folder / name, compare([source]))
    return {name: folder / name / "leaderboard.html" for name in sources}


@pytest.fixture
def open_page(
    contexts: Callable[..., BrowserContext], pages: dict[str, Path]
) -> Iterator[Callable[..., Page]]:
    """Opens a leaderboard offline; after the test, expects no errors and no requests."""
    errors: list[str] = []
    opened = []

    def open_leaderboard(
        name: str = "grid", width: int = 1200, scheme: str = "light", script: bool = True
    ) -> Page:
        page = contexts(offline=True, java_script_enabled=script).new_page()
        opened.append(page)
        page.set_viewport_size({"width": width, "height": 800})
        page.emulate_media(
            color_scheme="dark" if scheme == "dark" else "light", reduced_motion="reduce"
        )
        page.on("console", lambda message: errors.append(message.text))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(pages[name].as_uri())
        return page

    requests: list[str] = []
    yield open_leaderboard
    for page in opened:
        page.close()
    assert errors == []
    page_urls = {path.as_uri() for path in pages.values()}
    assert [url for url in requests if not url.startswith("data:") and url not in page_urls] == []


def test_right_to_left_names_are_isolated(tmp_path: Path):
    for number, word in enumerate(("דרמה", "كوميديا! 2", "Action")):
        for other in ("א", "b"):
            settings = {"model.kind": word, "model.other": other}
            status = "failed" if number == 0 else "completed"
            write_run(tmp_path / f"{word},{other}", settings, status=status)
    write_leaderboard(tmp_path, compare([tmp_path]))
    html = (tmp_path / "leaderboard.html").read_text("utf-8")
    assert html.count("דרמה") > 5
    assert not_isolated(html) == []


def test_browser_shows_all_sections_and_runs_no_injected_script(open_page: Callable[..., Page]):
    page = open_page()
    assert page.evaluate("window.hit") is None
    for name in ("ranking", "curves", "settings", "spread", "unfinished", "runs", "method"):
        assert page.locator(f"h2#{name}").is_visible(), name
    assert page.locator("#ranking-table tbody tr").count() == 10
    assert page.locator(".heat td.cell").count() == 10
    assert page.locator("svg.curves").count() == 3
    assert page.locator("svg.curves.large .run").count() == 19
    assert page.locator(".heat td.best").inner_text().startswith("0.3")
    for setting in page.locator(".key div").filter(has=page.locator(".name")).all():
        names = setting.locator("span").all_inner_texts()
        assert len(set(names)) == len(names), names
    assert "{{ 7 * 7 }}" in page.locator(".stopped").inner_text()


def test_browser_links_rows_curves_and_cells(open_page: Callable[..., Page]):
    page = open_page()
    lit = "[...new Set([...document.querySelectorAll('.on')].map((each) => each.dataset.g))].join()"
    page.locator("#ranking-table tbody tr").nth(2).hover()
    assert page.evaluate(lit) == "2" and page.locator("svg.curves .run.on").count() == 6
    assert page.locator(".readout").inner_text().startswith("dropout")
    assert page.locator(".readout bdi").inner_text().startswith("dropout")
    page.locator(".heat td.cell[data-g='4']").click()
    page.mouse.move(0, 0)
    assert page.evaluate(lit) == "4"
    page.locator("#ranking-table tbody tr[data-g='1'] button").focus()
    page.keyboard.press("Enter")
    assert page.locator("#ranking-table button[aria-pressed=true]").count() == 2
    page.keyboard.press("Escape")
    assert page.evaluate(lit) == "" and page.locator(".readout").is_hidden()
    point = page.evaluate(
        """() => {
          const path = document.querySelector("svg.large .run[data-g='0'] .curve");
          path.scrollIntoView({block: "center"});
          const end = path.getPointAtLength(path.getTotalLength());
          const {x, y} = end.matrixTransform(path.getScreenCTM());
          return [x, y];
        }"""
    )
    page.mouse.move(point[0] - 3, point[1])
    assert page.evaluate(lit) == "0"


def test_browser_sorts(open_page: Callable[..., Page]):
    page = open_page("many")
    page.locator("#ranking-table th", has_text="lr").get_by_role("button").click()
    headings = page.locator("#ranking-table thead th").all_inner_texts()
    number = next(i for i, text in enumerate(headings) if text.startswith("lr")) + 1
    column = page.locator(f"#ranking-table tbody tr > :nth-child({number})")
    values = [float(text) for text in column.all_inner_texts()]
    assert values == sorted(values, reverse=True) and len(values) > 150


def test_a_page_of_200_runs_stays_small(open_page: Callable[..., Page], pages: dict[str, Path]):
    assert pages["many"].stat().st_size < 1_200_000
    page = open_page("many")
    assert (
        page.locator("svg.parallel .run").count() == page.locator("#ranking-table tbody tr").count()
    )
    assert page.locator("svg.curves.large .run").count() == 200


@pytest.mark.parametrize("width", [1400, 390])
def test_labels_of_the_spread_are_not_cut_off(open_page: Callable[..., Page], width: int):
    labels = open_page("many", width).locator(".spread .row-label")
    assert any("b" * 70 in text for text in labels.all_inner_texts())
    cut_off = "all => all.filter(e => e.scrollWidth > e.clientWidth).map(e => e.innerText)"
    assert labels.evaluate_all(cut_off) == []


def test_a_heat_map_of_long_names_fits_on_a_phone(open_page: Callable[..., Page]):
    box = open_page("branches", 390).locator(".box:has(.heat)")
    assert box.locator("td.cell").count() == 4
    assert box.evaluate("e => e.scrollWidth <= e.clientWidth")


def test_one_run_has_a_page(open_page: Callable[..., Page]):
    page = open_page("one")
    assert page.locator("#ranking-table tbody tr").count() == 1
    assert page.locator("h2#settings").count() == 0 and page.locator("svg.curves").count() == 3


@pytest.mark.parametrize("width", [320, 375, 768])
@pytest.mark.parametrize("name", ["grid", "many"])
def test_browser_never_scrolls_the_page_sideways(
    open_page: Callable[..., Page], name: str, width: int
):
    page = open_page(name, width)
    for summary in page.locator("summary").all():
        summary.click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["grid", "many"])
def test_browser_shows_legible_text_in_light_and_dark_mode(
    open_page: Callable[..., Page], name: str, scheme: str
):
    page = open_page(name, scheme=scheme)
    assert page.evaluate(CONTRAST) == []


def test_browser_shows_the_tables_without_scripts(open_page: Callable[..., Page]):
    page = open_page(script=False)
    assert page.locator("#ranking-table tbody tr").count() == 10
    assert page.locator("button:visible").count() == 0
