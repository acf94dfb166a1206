"""Use the page in a real browser, as a user does."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch
from playwright.sync_api import BrowserContext, Page, Request, expect

from genre_lightning import GenrePredictor
from genre_lightning.inputs.ocr import ocr_sha256
from genre_lightning.inputs.poster_text import PosterTextInput
from genre_lightning.inputs.terms import TermsInput
from genre_lightning.webapp import api
from genre_lightning.webapp.api import MAX_CHARACTERS, MAX_POSTER_BYTES
from tests.pages import NOT_ISOLATED
from tests.pictures import write_poster
from tests.webapp.serving import Served, serving

Contexts = Callable[..., BrowserContext]

HOSTILE = '<img src=x onerror="window.hit=1"><script>window.hit=1</script> & "Heat" (1995)'


@pytest.fixture
def page(contexts: Contexts, served: Served) -> Iterator[Page]:
    """The open page. Afterwards, check that it sent no foreign requests and logged no errors."""
    with open_page(contexts(), served.url) as opened:
        yield opened


@contextmanager
def open_page(context: BrowserContext, url: str, scheme: str = "light") -> Iterator[Page]:
    asked: list[Request] = []
    errors: list[str] = []

    def note(request: Request) -> None:
        asked.append(request)

    context.on("request", note)
    opened = context.new_page()
    opened.set_default_timeout(60_000)
    opened.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.on(
        "console",
        # The browser itself logs responses with status 400 and above.
        lambda message: (
            errors.append(message.text)
            if message.type == "error" and "Failed to load resource" not in message.text
            else None
        ),
    )
    opened.goto(url)
    expect(opened.locator("#about")).to_contain_text("4 genres")
    try:
        yield opened
        here = urlsplit(url).netloc
        for request in asked:
            parts = urlsplit(request.url)
            assert parts.scheme in ("blob", "data") or parts.netloc == here, request.url
        assert errors == []
        assert not opened.evaluate("() => 'hit' in window")
    finally:
        opened.close()
        context.remove_listener("request", note)


def submit_title(page: Page, title: str) -> None:
    page.get_by_label("Title").fill(title)
    page.keyboard.press("Enter")


def to_float(text: str) -> float:
    return float(text.replace("−", "-"))


def read_values(page: Page, rows: str) -> dict[str, float]:
    names = page.locator(f"{rows} .name").all_inner_texts()
    values = page.locator(f"{rows} .value").all_inner_texts()
    return dict(zip(names, map(to_float, values), strict=True))


def test_the_words_on_a_poster_are_shown_with_their_contributions(
    contexts: Contexts, make_checkpoint: Callable[..., Path], tmp_path: Path
):
    pytest.importorskip("rapidocr", reason="the extra `pretrained` has it")
    text = {"kind": "terms", "vocabulary_size": 64, "analyzer": "word", "ngram_range": [1, 1]}
    words = PosterTextInput("poster", text)
    assert isinstance(words.text, TermsInput)
    words.text.vectorizer.fit(["Rio Bravo", "a rose"])
    words.sha256 = ocr_sha256()
    more = {"poster_words": (words, {"name": "terms_linear"})}
    model = GenrePredictor.from_checkpoint(make_checkpoint(poster=None, more=more, seed=6), "cpu")
    with serving(model) as server, open_page(contexts(), server.url) as page:
        poster = write_poster(tmp_path / "poster.png", "RIO BRAVO", "JOHN WAYNE")
        page.get_by_label("Poster", exact=True).set_input_files(poster)
        page.get_by_role("button", name="Predict genres").click()
        reason = page.locator("[data-branch=poster_words]")
        expect(reason.locator(".marked")).to_have_text("RIO BRAVO. JOHN WAYNE")
        expect(reason.locator("mark.for, mark.against").first).to_be_visible()
        assert set(read_values(page, "[data-branch=poster_words] .words")) == {"RIO", "BRAVO"}


def test_title_and_poster_give_bars_and_reasons(
    page: Page, poster_file: Path, poster: bytes, predictor: GenrePredictor
):
    title = "Night of the Living Dead (1968)"
    page.get_by_label("Title").fill(title)
    page.get_by_label("Poster", exact=True).set_input_files(poster_file)
    expect(page.locator(".preview")).to_be_visible()
    page.get_by_role("button", name="Predict genres").click()
    (expected,) = predictor.predict([title], [poster])
    for name in expected.genres:
        expect(page.get_by_role("status")).to_contain_text(name)
    expect(page.locator("#bars li")).to_have_count(4)
    assert read_values(page, "#bars") == {name: round(s, 2) for name, s in expected.ranked()}
    predicted = page.locator("#bars .predicted .name").all_inner_texts()
    assert set(predicted) == set(expected.genres)
    for name, score in expected.scores.items():
        bar = page.locator("#bars li", has_text=name).locator(".bar")
        drawn = bar.evaluate("(e) => [e.style.getPropertyValue('--score'), e.offsetWidth]")
        assert float(drawn[0]) == pytest.approx(score, abs=1e-6) and drawn[1] > 50

    other = next(name for name, _ in reversed(expected.ranked()))
    page.locator("#bars label", has_text=other).click()
    expect(page.get_by_role("heading", name=f"Why {other}")).to_be_visible()
    expect(page.locator("#why-score")).to_contain_text(f"{expected.scores[other]:.2f}")
    parts = read_values(page, "#parts")
    assert list(parts) == ["Bias", "Title", "Poster", "Sum"]
    assert sum(parts.values()) - 2 * parts["Sum"] == pytest.approx(0, abs=0.021)
    assert 1 / (1 + np.exp(-parts["Sum"])) == pytest.approx(expected.scores[other], abs=0.005)
    words = read_values(page, ".words")
    assert {"Living", "Dead", "Night", "the", "of"} <= set(words)
    assert sum(words.values()) == pytest.approx(parts["Title"], abs=0.005 * (len(words) + 1))
    sizes = [abs(value) for value in words.values()]
    assert sizes == sorted(sizes, reverse=True)
    assert page.locator(".marked").inner_text() == title
    assert page.locator(".marked mark", has_text="Living").count() == 1
    heat = page.get_by_alt_text(f"bright where the evidence for {other} lies")
    expect(heat).to_have_attribute("src", re.compile("^blob:"))
    assert heat.evaluate("(image) => image.decode().then(() => image.naturalHeight)") == 512


def test_the_page_works_with_the_keyboard_alone(page: Page):
    page.keyboard.press("Tab")
    expect(page.get_by_label("Title")).to_be_focused()
    page.keyboard.type("Alien (1979)")
    page.keyboard.press("Enter")
    expect(page.locator("#why-heading")).to_be_visible()
    first = page.locator("#bars .chosen .name").inner_text()
    for _ in range(3):  # poster, button, genres
        page.keyboard.press("Tab")
    expect(page.locator("#bars .chosen input")).to_be_focused()
    page.keyboard.press("ArrowDown")
    chosen = page.locator("#bars .chosen")
    expect(chosen.locator("input")).to_be_focused()
    name = chosen.locator(".name").inner_text()
    assert name != first
    expect(page.locator("#why-heading")).to_contain_text(name)
    expect(page.get_by_role("radio", name=re.compile(f"^{name} .*threshold"))).to_be_checked()


def test_a_file_that_is_not_a_picture_is_reported(page: Page, tmp_path: Path):
    path = tmp_path / "notes.txt"
    path.write_text("no picture at all")
    submit_title(page, "Heat (1995)")
    expect(page.locator("#genres")).to_be_visible()
    page.get_by_label("Poster", exact=True).set_input_files(path)
    problem = page.get_by_role("alert").first
    expect(problem).to_contain_text("can't be read as a picture")
    # The title alone is still predicted.
    expect(page.locator("#genres")).to_be_visible()
    expect(page.locator("#summary")).to_contain_text("without the poster, which can't be read")
    expect(page.locator(".marked")).to_have_text("Heat (1995)")
    assert list(read_values(page, "#parts")) == ["Bias", "Title", "No poster", "Sum"]
    page.get_by_role("button", name="Remove the poster").click()
    expect(problem).to_be_empty()
    expect(page.locator("#summary")).not_to_contain_text("without")
    page.get_by_label("Title").fill("")
    page.get_by_label("Poster", exact=True).set_input_files(path)
    # Shown only beside the poster, like other problems with it.
    expect(problem).to_contain_text("can't be read as a picture")
    expect(page.locator("#problem")).to_be_empty()
    expect(page.locator("#genres")).to_be_hidden()
    page.get_by_role("button", name="Remove the poster").click()
    expect(problem).to_be_empty()
    page.get_by_role("button", name="Predict genres").click()
    expect(page.locator("#problem")).to_contain_text("type the title or choose the poster")
    expect(problem).to_be_empty()


def test_large_files_empty_files_and_empty_forms_are_reported(page: Page, tmp_path: Path):
    large, empty = tmp_path / "large.png", tmp_path / "empty.png"
    with large.open("wb") as file:
        file.truncate(MAX_POSTER_BYTES + 1)
    empty.touch()
    alert = page.get_by_role("alert").first
    page.get_by_role("button", name="Predict genres").click()
    expect(page.locator("#problem")).to_contain_text("type the title or choose the poster")
    page.get_by_label("Poster", exact=True).set_input_files(large)
    expect(alert).to_contain_text("large.png is too large")
    page.get_by_label("Poster", exact=True).set_input_files(empty)
    expect(alert).to_contain_text("empty.png is empty")


def test_a_poster_can_be_dropped(page: Page, poster: bytes):
    data = page.evaluate_handle(
        """(bytes) => {
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(bytes)], "dropped.png", {type: "image/png"}));
            return data;
        }""",
        list(poster),
    )
    page.dispatch_event(".drop", "drop", {"dataTransfer": data})
    expect(page.locator(".preview")).to_be_visible()
    expect(page.locator("#column-poster-hint")).to_have_text("dropped.png")
    expect(page.locator(".heat")).to_have_attribute("src", re.compile("^blob:"))
    assert list(read_values(page, "#parts")) == ["Bias", "No title", "Poster", "Sum"]
    assert page.locator(".reason").count() == 1


@pytest.mark.parametrize(
    "title",
    [HOSTILE, "中文 🎬🎬 Alien", "ﬁve of Łódź (1995)", "?!"],
    ids=["markup", "beyond 16 bits", "ligature", "no words"],
)
def test_any_title_is_shown_unchanged_as_text(page: Page, title: str):
    submit_title(page, title)
    expect(page.locator(".marked")).to_have_text(title)
    assert page.locator("#why img[src=x], #why script").count() == 0


def test_a_score_just_below_its_threshold_is_shown_as_below(
    page: Page, monkeypatch: pytest.MonkeyPatch
):
    predict = api.predict_movie

    def just_below(predictor: GenrePredictor, movie: dict[str, Any]) -> Any:
        found = predict(predictor, movie)
        found["genres"][0] |= {"score": 0.2107, "threshold": 0.2121, "predicted": False}
        return found | {"predicted": []}

    monkeypatch.setattr(api, "predict_movie", just_below)
    submit_title(page, "Heat (1995)")
    expect(page.locator("#why-score")).to_have_text("Score 0.211, below its threshold of 0.212.")
    first = page.locator("#bars li").first
    expect(first.locator("label")).to_have_attribute("title", "score 0.211, threshold 0.212")
    label = first.locator("input").get_attribute("aria-label")
    assert label is not None and label.endswith(" 0.211, not predicted, threshold 0.212")


def test_a_stopped_server_is_reported(contexts: Contexts, predictor: GenrePredictor):
    with serving(predictor) as server, open_page(contexts(), server.url) as page:
        server.stop()
        submit_title(page, "Heat (1995)")
        expect(page.locator("#problem")).to_contain_text("Is genre-demo still running")


def test_a_slow_answer_does_not_replace_a_newer_one(
    page: Page, served: Served, monkeypatch: pytest.MonkeyPatch
):
    predict, slow = api.predict_movie, threading.Event()

    def delayed(predictor: GenrePredictor, movie: dict[str, Any]) -> Any:
        if movie["title"] == "Slow":
            assert slow.wait(20)
        return predict(predictor, movie)

    monkeypatch.setattr(api, "predict_movie", delayed)
    submit_title(page, "Slow")
    expect(page.locator("#answer")).to_have_attribute("aria-busy", "true")
    submit_title(page, "Quick")
    expect(page.locator(".marked")).to_have_text("Quick")
    slow.set()
    page.wait_for_load_state("networkidle")
    expect(page.locator(".marked")).to_have_text("Quick")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_the_reasons_are_under_their_genre(
    contexts: Contexts, served: Served, poster_file: Path, scheme: str
):
    phone = contexts(has_touch=True, is_mobile=True)
    with open_page(phone, served.url, scheme) as page:
        page.set_viewport_size({"width": 375, "height": 812})
        page.get_by_label("Poster", exact=True).set_input_files(poster_file)
        expect(page.locator("#genres")).to_be_visible()
        expect(page.locator("#why")).to_be_hidden()
        labels = page.locator("#bars label")
        labels.nth(0).tap()
        expect(page.locator("#bars li").nth(0).locator("#why")).to_be_visible()
        expect(page.locator(".heat")).to_have_attribute("src", re.compile("^blob:"))
        labels.nth(2).scroll_into_view_if_needed()
        before = labels.nth(2).bounding_box()
        labels.nth(2).tap()
        expect(page.locator("#bars li").nth(2).locator("#why")).to_be_visible()
        after = labels.nth(2).bounding_box()
        assert before is not None and after is not None
        assert after["y"] == pytest.approx(before["y"], abs=2), "it moved away from the finger"
        width = page.evaluate("() => document.documentElement.scrollWidth")
        assert width == 375, "the page can be pushed sideways"
        assert contrast(page, "body") >= 7
        assert contrast(page, "#why .hint") >= 4.5


def contrast(page: Page, selector: str) -> float:
    """Contrast of text with the page, by WCAG 2: (L1 + 0.05) / (L2 + 0.05)."""
    colours = page.evaluate(
        """(selector) => [
            getComputedStyle(document.querySelector(selector)).color,
            getComputedStyle(document.body).backgroundColor,
        ]""",
        selector,
    )
    light = []
    for colour in colours:
        values = np.array([int(v) for v in re.findall(r"\d+", colour)[:3]]) / 255
        linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
        light.append(float(linear @ np.array([0.2126, 0.7152, 0.0722])))
    return (max(light) + 0.05) / (min(light) + 0.05)


def test_the_form_has_only_the_models_columns(
    contexts: Contexts, make_checkpoint: Callable[..., Path]
):
    titles_only = GenrePredictor.from_checkpoint(make_checkpoint(poster=None), "cpu")
    with serving(titles_only) as server, open_page(contexts(), server.url) as page:
        assert page.get_by_label("Poster", exact=True).count() == 0
        submit_title(page, "Heat (1995)")
        expect(page.locator("#why-heading")).to_be_visible()
        assert list(read_values(page, "#parts")) == ["Bias", "Title", "Sum"]


def test_every_column_of_the_model_has_a_field_and_reasons(
    contexts: Contexts, wider: GenrePredictor, poster_file: Path, poster: bytes
):
    with serving(wider) as server, open_page(contexts(), server.url) as page:
        expect(page.locator("#about")).to_contain_text("title, poster or synopsis, or several")
        page.get_by_label("Synopsis").fill("A thief plans a last heist.\nAgain.")
        page.get_by_label("Synopsis").press("Enter")  # a new line: a text may have several
        expect(page.locator("#genres")).to_be_hidden()
        page.get_by_label("Synopsis").press("Control+Enter")
        expect(page.locator("#genres")).to_be_visible()
        assert list(read_values(page, "#parts")) == [
            "Bias", "No title", "No poster", "Synopsis", "Co-occurrence", "Sum",
        ]  # fmt: skip
        expect(page.locator("#parts-hint")).to_contain_text("what the scores of all genres add")
        page.get_by_label("Poster", exact=True).set_input_files(poster_file)
        expect(page.locator("figure.reason")).to_be_visible()
        headings = page.locator(".reason h3").all_inner_texts()
        assert headings == ["Where in the poster", "Words of the synopsis"]
        text = page.get_by_label("Synopsis").input_value()
        (expected,) = wider.predict(None, [poster], synopsis=[text])
        assert read_values(page, "#bars") == {name: round(s, 2) for name, s in expected.ranked()}
        expect(page.locator(".marked")).to_have_text(text.strip())
        assert "thief" in read_values(page, ".words")


def test_a_text_that_is_too_long_is_refused_and_not_cut(contexts: Contexts, wider: GenrePredictor):
    with serving(wider) as server, open_page(contexts(), server.url) as page:
        synopsis = page.get_by_label("Synopsis")
        synopsis.fill("🎬" * MAX_CHARACTERS)  # two code units each, and one character
        page.get_by_role("button", name="Predict genres").click()
        expect(page.locator("#genres")).to_be_visible()
        synopsis.fill("")
        synopsis.focus()
        page.keyboard.insert_text("a" * (MAX_CHARACTERS + 1))
        page.get_by_role("button", name="Predict genres").click()
        expect(page.locator("#problem")).to_have_text(
            "The synopsis has 20,001 characters; up to 20,000 are read."
        )
        expect(page.locator("#genres")).to_be_hidden()


def test_a_very_long_word_does_not_break_the_layout(page: Page):
    title = "Alien" * 4_000
    submit_title(page, title)
    expect(page.locator("#genres")).to_be_visible()
    expect(page.locator(".marked")).to_have_text(title)
    (name,) = page.locator(".words .name").all_inner_texts()
    assert name == title[:59] + "…"
    assert page.evaluate("document.documentElement.scrollHeight") < 4_000


def test_right_to_left_names_do_not_reorder_the_page(
    contexts: Contexts, make_checkpoint: Callable[..., Path], poster_file: Path
):
    path = make_checkpoint()
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["genre_lightning"]["genres"] = ["דרמה", "كوميديا 2", "Action", "(אימה)"]
    torch.save(checkpoint, path)
    predictor = GenrePredictor.from_checkpoint(path, "cpu")
    with serving(predictor) as server, open_page(contexts(), server.url) as page:
        page.locator("input[type=file]").set_input_files(poster_file)
        submit_title(page, "מתח! Heat (1995)")
        expect(page.locator("#genres")).to_be_visible()
        for name in predictor.genres:
            page.locator("#bars label", has_text=name).click()
            expect(page.locator("#why-heading")).to_contain_text(name)
            assert page.evaluate(NOT_ISOLATED) == []
        expect(page.locator("#bars")).to_contain_text("דרמה")


def test_the_top_words_of_a_long_text_are_listed(contexts: Contexts, wider: GenrePredictor):
    known = "A thief plans a last heist. Toys live happily. "
    with serving(wider) as server, open_page(contexts(), server.url) as page:
        page.get_by_label("Synopsis").fill(known * 30 + "Unknown " + "words " * 20)
        page.get_by_role("button", name="Predict genres").click()
        expect(page.locator("#genres")).to_be_visible()
        words = read_values(page, ".words")
        assert len(words) == len({word.lower() for word in words}) <= 13
        parts = read_values(page, "#parts")
        assert sum(words.values()) == pytest.approx(parts["Synopsis"], abs=0.07)
        expect(page.locator(".reason .hint")).to_contain_text(
            "Unknown to the model: Unknown, words"
        )
        field = page.get_by_label("Synopsis").bounding_box()
        assert field is not None and field["height"] <= 300
        read = page.locator(".long .marked")
        shown = read.bounding_box()
        assert shown is not None and shown["height"] <= 400
        read.press("End")
        expect(read).not_to_have_js_property("scrollTop", 0)
