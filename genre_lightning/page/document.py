"""One self-contained HTML file: its styles and its script are in it, nothing else can run."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping
from importlib import resources
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

_HERE = "genre_lightning.page"


def render_page(
    package: str, name: str, *, filters: Mapping[str, Callable[..., Any]], **values: Any
) -> str:
    """A page as HTML, by the template ``NAME.html.j2`` of a package, which extends ours.

    ``NAME.css`` and ``NAME.js``, where there is one, follow what every page has: the style sheet
    and tables that sort by a click on a heading. No other script runs, nothing is loaded.
    """
    folder = resources.files(package)
    style = _read(_HERE, "page.css") + _read(package, f"{name}.css")
    script = _read(_HERE, "sort.js")
    if (folder / f"{name}.js").is_file():
        script += _read(package, f"{name}.js")
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package, "."), PackageLoader(_HERE, ".")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= filters
    return environment.get_template(f"{name}.html.j2").render(
        style=Markup(style),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        **values,
    )


def _read(package: str, name: str) -> str:
    return (resources.files(package) / name).read_text(encoding="utf-8")
