"""The site that `make docs` builds: its API page, and that no page loads anything remote."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import genre_lightning

if TYPE_CHECKING:
    from playwright.sync_api import Browser

REPOSITORY = Path(__file__).resolve().parents[2]
# Building the site takes ten seconds.
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the built site."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=REPOSITORY,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_the_api_has_every_public_name_and_no_raw_markup(site: Path):
    page = (site / "api.html").read_text("utf-8")
    ids = set(re.findall(r'id="(genre_lightning\.[\w.]+)"', page))
    public = {f"genre_lightning.{name}" for name in genre_lightning.__all__ if name[0] != "_"}
    assert public <= ids
    names = re.findall(r"^::: (\S+)$", (REPOSITORY / "docs" / "api.md").read_text("utf-8"), re.M)
    assert (
        set(names) - {"genre_lightning.errors"} <= ids and "genre_lightning.errors.UserError" in ids
    )
    # Markup that mkdocstrings does not know would be shown as it stands.
    shown = re.sub(r"<script.*?</script>|<[^>]+>", "", page, flags=re.DOTALL)
    assert not re.search(r":(?:attr|class|data|exc|func|meth|mod):", shown)
    assert "``" not in shown
    assert not re.search(r"<p>\s*(?:Args|Attributes|Raises|Returns|Yields):", page)
    # A reference to a name on the page is a link to it.
    assert re.search(r'<a [^>]*href="#genre_lightning\.checkpoint\.card\.read_checkpoint"', page)


def test_pages_load_nothing_remote(site: Path, browser: Browser):
    page = browser.new_page()
    requested: list[str] = []
    problems: list[str] = []
    page.on("request", lambda request: requested.append(request.url))
    page.on("pageerror", lambda error: problems.append(str(error)))
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 14
    for path in pages:
        page.goto(path.as_uri())
        page.wait_for_load_state("networkidle")
    page.close()
    assert [url for url in requested if not url.startswith(("file:", "data:", "blob:"))] == []
    assert problems == []


def test_the_api_page_fits_a_phone(site: Path, browser: Browser):
    page = browser.new_page(viewport={"width": 400, "height": 800})
    page.goto((site / "api.html").as_uri())
    width = page.evaluate("document.documentElement.scrollWidth")
    page.close()
    assert width <= 400
