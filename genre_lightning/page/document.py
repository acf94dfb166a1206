"""Self-contained HTML files: styles and script are inline, and no other script can run."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from importlib import resources
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

_PACKAGE = "genre_lightning.page"


def render_page(
    package: str,
    name: str,
    *,
    filters: Mapping[str, Callable[..., Any]],
    styles: Sequence[str] = (),
    **values: Any,
) -> str:
    """Render a page as HTML from a package's template ``NAME.html.j2``, which extends ours.

    ``NAME.css`` and, if it exists, ``NAME.js`` are added to those of every page: the style sheet,
    and the script that sorts tables by a click on a heading. No other script runs, and nothing is
    loaded. ``styles`` are further style sheets of this folder, such as "card.css".
    """
    folder = resources.files(package)
    style = "".join(_read(_PACKAGE, sheet) for sheet in ("page.css", *styles))
    style += _read(package, f"{name}.css")
    script = _read(_PACKAGE, "sort.js")
    if (folder / f"{name}.js").is_file():
        script += _read(package, f"{name}.js")
    return _render(
        package,
        name,
        filters,
        style=Markup(style),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        **values,
    )


def render_fragment(
    package: str,
    name: str,
    *,
    filters: Mapping[str, Callable[..., Any]],
    styles: Sequence[str] = (),
    **values: Any,
) -> str:
    """Render a part of another page as HTML, such as an output of a notebook.

    The package's template ``NAME.html.j2`` extends our ``fragment.html.j2``. The styles are those
    of :func:`render_page` without ``page.css``, and only apply to the fragment. There is no script.
    """
    style = "".join(_read(_PACKAGE, sheet) for sheet in styles) + _read(package, f"{name}.css")
    return _render(package, name, filters, style=Markup(style), **values)


def _render(
    package: str, name: str, filters: Mapping[str, Callable[..., Any]], **values: Any
) -> str:
    environment = _environment(package, tuple(filters.items()))
    return environment.get_template(f"{name}.html.j2").render(**values)


@lru_cache(maxsize=8)
def _environment(package: str, filters: tuple[tuple[str, Callable[..., Any]], ...]) -> Environment:
    """Create the environment that compiles templates, once for all pages of a kind."""
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package, "."), PackageLoader(_PACKAGE, ".")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"isolated": isolated, **dict(filters)}
    return environment


def isolated(text: object) -> Markup:
    """Isolate a name, so that right-to-left text does not reorder the text beside it."""
    return Markup("<bdi>{}</bdi>").format(text)


def _read(package: str, name: str) -> str:
    return (resources.files(package) / name).read_text(encoding="utf-8")
