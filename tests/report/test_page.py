"""report.html: complete, without injected code, and rendered in a real browser."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from playwright.sync_api import BrowserContext, Page

import genre_lightning.comparison
import genre_lightning.page
import genre_lightning.report
from genre_lightning.models.label_sets import LabelSets
from genre_lightning.models.stacking import Stacking
from genre_lightning.report.charts import Mark, dot_rows, heat_map
from genre_lightning.report.numbers import digits_beside, number, signed
from genre_lightning.report.page import render_report
from genre_lightning.scoring.metrics import genre_metrics
from tests.pages import CONTRAST, not_isolated

SECTIONS = ["overall", "genres", "curves", "calibration", "pairs", "branches", "gallery", "method"]


def render(case: Any) -> str:
    return render_report(case.model, case.data, case.scores, case.origin, case.validation)


@pytest.fixture(scope="module", params=["two", "three"])
def case(request: pytest.FixtureRequest) -> Any:
    """Models of two and of three branches, for tests that hold for both."""
    return request.getfixturevalue(f"{request.param}_branches")


@pytest.fixture(scope="module")
def page_file(case: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(render(case), encoding="utf-8")
    return path


class ParsedPage(HTMLParser):
    """A page's elements with their attributes, and its texts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data.strip())


def test_the_page_shows_the_metrics(case: Any, page_file: Path):
    texts = ParsedPage(page_file.read_text("utf-8")).texts
    metrics = genre_metrics(case.scores.scores, case.scores.targets, case.model.thresholds)
    for name in ("f1_micro", "f1_macro", "map_macro", "f1_samples_at_0.5", "recall_macro_at_0.5"):
        assert f"{metrics[name]:.3f}" in texts, name
    assert any("n\u00a0=\u00a024, 1000 resamples, seed 0" in text for text in texts)
    assert "python evaluate.py ckpt_path=a.ckpt 'data.path=<my> files.csv'" in texts
    assert "2025-03-04 05:06 UTC" in texts
    assert "18 present, 5 missing, 1 unreadable" in texts


def test_the_page_loads_nothing_external(page_file: Path):
    html = page_file.read_text("utf-8")
    assert len(html.encode()) < 3_000_000
    for tag, attributes in ParsedPage(html).elements:
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), (tag, name, value[:80])
    assert "url(" not in html and "@import" not in html
    assert "default-src 'none'" in html


def test_names_are_escaped(page_file: Path):
    page = ParsedPage(page_file.read_text("utf-8"))
    assert sum(tag == "script" for tag, _ in page.elements) == 1
    assert {a["src"][:10] for tag, a in page.elements if tag == "img" and a["src"]} == {
        "data:image"
    }
    assert not any(name.startswith("on") for _, a in page.elements for name in a)
    assert any("<script>window.hit=1</script>" in text for text in page.texts)
    assert any("{{ 7 * 7 }}" in text for text in page.texts)


def test_a_genre_without_positives_shows_dashes(page_file: Path):
    html = page_file.read_text("utf-8")
    row = html[html.index('title="Horror"><bdi>Horror</bdi></th>') :].partition("</tr>")[0]
    cells = re.findall(r"<td[^>]*>(.*?)</td>", row)
    f1, _, _, recall, ap, support = cells[:6]
    assert (f1, recall, ap, support) == ("–", "–", "–", "0")
    assert "no movie of this split has it" in html


@pytest.mark.parametrize("branch", ["name", "picture", "plot"])
def test_a_model_of_one_branch_has_a_report(make_case: Callable[..., Any], branch: str):
    case = make_case(["Action", "Comedy", "Drama"], [branch])
    html = render_report(case.model, case.data, case.scores, case.origin)
    assert f"has the branch {branch} only" in html
    ids = {attributes.get("id") for _, attributes in ParsedPage(html).elements}
    assert ids >= set(SECTIONS)
    assert ("Grad-CAM), bright" in html) == (branch == "picture")
    assert ("(integrated gradients, exact)" in html) == (branch != "picture")


def test_a_single_genre_has_no_pairs(make_case: Callable[..., Any]):
    html = render(make_case(["Heist"]))
    page = ParsedPage(html)
    assert not {a.get("id") or a.get("href") for _, a in page.elements} & {"pairs", "#pairs"}


@pytest.mark.parametrize("count", [0, 1])
def test_the_gallery_has_the_requested_number_of_movies(two_branches: Any, count: int):
    case = two_branches
    html = render_report(case.model, case.data, case.scores, case.origin, gallery=count)
    lists = html.split('<ul class="cards"')[1:]
    shown = [cards.count('<li class="card">') for cards in lists]
    assert len(shown) == 3 * count and max(shown, default=0) == count
    for text in ('id="gallery"', 'href="#gallery"', "Grad-CAM", "integrated gradients"):
        assert (text in html) == (count > 0), text


def test_branches_are_compared_only_with_a_validation_split(two_branches: Any):
    case = two_branches
    html = render_report(case.model, case.data, case.scores, case.origin)
    assert (
        groups(html) == [] and "There is no validation split apart from the training data" in html
    )
    assert groups(render(case)) != []


def test_without_a_training_split_there_are_no_baselines(two_branches: Any):
    data = copy.copy(two_branches.data)
    data.splits = {**data.splits, "train": np.zeros(0, np.int64), "val": np.zeros(0, np.int64)}
    html = render_report(two_branches.model, data, two_branches.scores, two_branches.origin)
    complete_html = render_report(
        two_branches.model, two_branches.data, two_branches.scores, two_branches.origin
    )
    for word in (">Prior<", ">Constant<", ">constant ", "on the training split"):
        assert word in complete_html and word not in html
    assert "F1, micro" in html


def groups(html: str) -> list[str]:
    return re.findall(r'colspan="7">([^<]*)<', html)


def test_two_branches_are_compared_with_and_without_posters(two_branches: Any):
    html = render(two_branches)
    assert groups(html) == ["All movies, n = 24", "With poster, n = 18", "Without poster, n = 6"]
    assert html.count("Gain from poster") == 2
    assert html.count("<span>no <bdi>poster</bdi></span>") > 0


def test_three_branches_are_compared_by_missing_columns(three_branches: Any):
    html = render(three_branches)
    assert groups(html) == [
        "All movies, n = 24",
        "With poster and synopsis, n = 14",
        "Without poster, n = 6",
        "Without synopsis, n = 6",
    ]
    texts = ParsedPage(html).texts
    assert "name + picture + plot" in texts
    assert "18 present, 6 missing" in texts  # synopses
    labels = ["title alone", "poster alone", "synopsis alone", "all"]
    assert [text for text in texts if text in labels] == labels  # the chart's legend
    assert html.count('aria-label="Words of synopsis"') > 0


def test_a_page_of_many_genres_stays_small(make_case: Callable[..., Any]):
    case = make_case([f"Genre number {g}" for g in range(60)], ["name"])
    html = render(case)
    assert "the 40 most frequent of 60" in html and "28 most frequent of 60" in html
    assert re.search(r"\(so it always predicts \d+ of the 60 genres\)", html)
    assert len(html.encode()) < 3_000_000


def test_right_to_left_names_are_isolated(make_case: Callable[..., Any]):
    html = render(make_case(["דרמה", "كوميديا 2", "Action", "(אימה)"]))
    assert html.count("דרמה") > 10
    assert not_isolated(html) == []


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_splits_that_flatter_the_model_are_noted(case: Any, split: str):
    other = replace(case.scores, split=split)
    html = render_report(case.model, case.data, other, case.origin, case.validation)
    assert ("flatter" in html) == (split != "test")


def test_softmax_scores_are_not_called_probabilities(case: Any):
    model = replace(case.model, activation="softmax")
    scores = replace(
        case.scores,
        scores=torch.softmax(case.scores.logits, dim=1),
    )
    html = render_report(model, case.data, scores, case.origin, case.validation)
    assert "not meant as a probability" in html


@pytest.mark.parametrize("by", ["stacking", "label_sets"])
def test_co_occurrence_is_a_part_of_the_shown_sums(
    by: str, case: Any, page_file: Path, monkeypatch: pytest.MonkeyPatch
):
    assert "co-occurrence " not in re.sub(r"<[^>]*>", "", page_file.read_text("utf-8"))
    branches = {name: torch.ones(1, 4) for name in case.model.inputs}
    stacking = Stacking(branches, torch.ones(1, 4, 4), torch.zeros(1, 4))
    values = {"stacking": stacking, "label_sets": LabelSets.from_targets(np.tri(4, 4))}
    monkeypatch.setattr(case.model.network, by, values[by])
    html = render(case)
    assert html.count("<span><bdi>co-occurrence</bdi> +") == html.count('<p class="sum">') > 0
    assert html.count("what the scores of all genres") == 2


def test_numbers_are_rounded_for_people():
    assert [number(float("nan")), number(0.12345)] == ["–", "0.123"]
    assert [signed(-0.5), signed(0.25), signed(-0.001)] == ["−0.50", "+0.25", "0.00"]


@pytest.mark.parametrize(
    ("score", "threshold", "digits"),
    [
        (0.1, 0.2, 2),
        (0.2107, 0.2121, 3),
        (0.2121, 0.2107, 2),  # predicted, so looking equal is no contradiction
        (0.25, 0.25, 2),
        (0.21003, 0.21004, 5),
        (1e-12, 2e-12, 9),
    ],
)
def test_a_score_below_its_threshold_does_not_look_equal_to_it(
    score: float, threshold: float, digits: int
):
    assert digits_beside(score, threshold) == digits


def test_every_file_of_a_page_is_part_of_the_package(repository: Path):
    patterns = re.search(
        r"^genre_lightning = (\[.*\])$", (repository / "pyproject.toml").read_text("utf-8"), re.M
    )
    assert patterns is not None
    for package in (genre_lightning.page, genre_lightning.report, genre_lightning.comparison):
        for path in Path(next(iter(package.__path__))).iterdir():
            if path.is_file() and path.suffix != ".py":
                assert f'"*/*{path.suffix}"' in patterns[1]


def test_evaluate_writes_the_report_beside_the_numbers(
    case: Any, make_checkpoint: Callable[..., Path], repository: Path, tmp_path: Path
):
    from hydra import compose, initialize_config_dir

    from evaluate import evaluate

    manifest = tmp_path / "movies.csv"
    text = case.manifest.read_text("utf-8").replace(case.model.genres[2], "Drama")
    manifest.write_text(text.replace(case.model.genres[2].replace('"', '""'), "Drama"), "utf-8")
    overrides = [f"ckpt_path={make_checkpoint()}", "data=manifest", f"data.path={manifest}"]
    with initialize_config_dir(str(repository / "conf"), version_base="1.3"):
        cfg = compose("evaluate", overrides)
    metrics = evaluate(cfg, tmp_path / "out", overrides)
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"metrics.json", "per_genre.csv", "predictions.csv", "report.html"}
    html = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert f"{metrics['f1_micro']:.3f}" in html
    assert re.search(r"evaluate[^ ]* ckpt_path=[^ ]*\.ckpt", html)


def test_a_long_name_leaves_room_for_the_heat_map():
    names = ["Action", "x" * 150]
    drawn = heat_map("pairs", np.ones((2, 2)), names)
    view = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', drawn)
    assert view is not None and float(view[1]) == float(view[2]) < 240
    assert f"{names[1]}, Action: 100%" in drawn and ">Action</text>" in drawn


def test_labels_of_a_heat_map_are_not_cut_off(contexts: Callable[..., BrowserContext]):
    names = ["Comedy", "Documentary", "ドキュメンタリー", "תיעודי"]
    page = contexts(offline=True).new_page()
    style = (resources.files(genre_lightning.page) / "page.css").read_text("utf-8")
    drawn = "".join(f"<div>{heat_map('pairs', np.ones((1, 1)), [name])}</div>" for name in names)
    page.set_content(f"<style>{style}</style>{drawn}")
    starts = page.evaluate(
        "[...document.querySelectorAll('text[text-anchor=end]')].map(e => e.getBBox().x)"
    )
    assert len(starts) == len(names) and min(starts) >= 0, starts


def test_the_axis_of_scores_ends_at_one():
    """Scores are float32, in which a mean of ones can be 1.0000001."""
    drawn = dot_rows("scores", [("mAP", [Mark("model", 1.0000001)])])
    assert re.findall(r">([\d.]+)</text>", drawn)[-1] == "1.0"


@pytest.fixture
def open_page(
    contexts: Callable[..., BrowserContext], page_file: Path
) -> Iterator[Callable[..., Page]]:
    """Opens the report offline; after the test, expects no errors and no requests."""
    errors: list[str] = []
    requests: list[str] = []
    pages = []

    def open_report(width: int = 1200, scheme: str = "light", script: bool = True) -> Page:
        page = contexts(offline=True, java_script_enabled=script).new_page()
        pages.append(page)
        page.set_viewport_size({"width": width, "height": 800})
        page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
        page.on("console", lambda message: errors.append(message.text))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(page_file.as_uri())
        return page

    yield open_report
    for page in pages:
        page.close()
    assert errors == []
    assert [url for url in requests if not url.startswith("data:")] == [page_file.as_uri()]


def test_browser_shows_all_sections_and_runs_no_injected_script(open_page: Callable[..., Page]):
    page = open_page()
    assert page.evaluate("window.hit") is None
    assert page.locator("h1").inner_text() == "How well genres are predicted"
    broken = "[...document.images].filter((image) => !image.naturalWidth).length"
    assert page.evaluate(broken) == 0 and page.locator(".card img").count() > 0
    for name in SECTIONS:
        assert page.locator(f"#{name}").is_visible(), name
    for link in page.locator("nav a").all():
        assert page.locator(str(link.get_attribute("href"))).count() == 1
    assert page.locator("svg").count() > 10


def column(page: Page, number: int) -> list[str]:
    cells = page.locator(f"#genre-table tbody tr > :nth-child({number})")
    return [text.strip() for text in cells.all_inner_texts()]


def test_browser_sorts_on_a_click(open_page: Callable[..., Page]):
    page = open_page()
    heading = page.locator("#genre-table thead th", has_text="AP")
    assert column(page, 7) == sorted(column(page, 7), key=int, reverse=True)  # first by support
    heading.get_by_role("button").click()
    descending = column(page, 6)
    assert heading.get_attribute("aria-sort") == "descending"
    assert descending == [*sorted(descending[:-1], reverse=True), "–"]
    heading.get_by_role("button").press("Enter")
    ascending = column(page, 6)
    assert heading.get_attribute("aria-sort") == "ascending"
    assert ascending == [*sorted(descending[:-1]), "–"]  # undefined values stay last
    page.locator("#genre-table thead th", has_text="Genre").get_by_role("button").click()
    assert column(page, 1)[-3:] == ["Action", "Comedy", "Horror"]
    assert page.locator("#genre-table [aria-sort]").count() == 1


@pytest.mark.parametrize("width", [320, 375, 768])
def test_browser_never_scrolls_the_page_sideways(open_page: Callable[..., Page], width: int):
    page = open_page(width)
    for summary in page.locator("summary").all():
        summary.click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    word = page.locator("ul.words li:not(.of)").first
    word.evaluate("(item) => { item.textContent = 'W'.repeat(600) + ' +0.10'; }")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    small_texts = """[...document.querySelectorAll("body *")].filter((each) =>
        each.childElementCount === 0 && each.textContent.trim() && !each.closest("svg")
        && each.getBoundingClientRect().width
        && parseFloat(getComputedStyle(each).fontSize) < 11.5).length"""
    assert page.evaluate(small_texts) == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_browser_shows_legible_text_in_light_and_dark_mode(
    open_page: Callable[..., Page], scheme: str
):
    page = open_page(scheme=scheme)
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    channels = [int(channel) for channel in re.findall(r"\d+", background)]
    assert max(channels) < 64 if scheme == "dark" else min(channels) > 224
    assert page.evaluate(CONTRAST) == []


def test_browser_shows_the_table_without_scripts(open_page: Callable[..., Page]):
    page = open_page(script=False)
    assert page.locator("#genre-table tbody tr").count() == 4
    assert page.locator("#genre-table button").count() == 0
