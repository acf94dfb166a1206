"""References in docstrings, such as ``:class:`Movie```, as links of the site."""

from __future__ import annotations

import re
from html import escape
from typing import Any

import griffe

_ROLE = re.compile(r":(?:attr|class|data|exc|func|meth|mod):`~?([\w.]+)`")


class Roles(griffe.Extension):
    """Makes each reference a link where its target is on the page, and else plain code."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Replace those of one docstring."""
        if obj.docstring is not None:
            obj.docstring.value = _ROLE.sub(lambda match: _link(obj, match[1]), obj.docstring.value)


def _link(obj: griffe.Object, name: str) -> str:
    try:
        target = obj.resolve(name)
    except griffe.NameResolutionError:
        target = name
    shown = escape(name.rpartition(".")[2] if name.startswith("genre_lightning.") else name)
    return f'<autoref optional identifier="{escape(target)}"><code>{shown}</code></autoref>'
