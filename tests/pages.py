"""Checks of every HTML page that the project writes."""

from __future__ import annotations

import re
from html.parser import HTMLParser

#: A letter of Hebrew or Arabic.
RIGHT_TO_LEFT = re.compile("[\u0590-\u06ff]")

# As not_isolated, run in a browser: for a page that a script builds.
NOT_ISOLATED = """() => {
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const found = [];
  while (texts.nextNode()) {
    const { textContent, parentElement } = texts.currentNode;
    if (/[\u0590-\u06ff]/.test(textContent) && !parentElement.closest("bdi, [dir=auto]"))
      found.push(textContent);
  }
  return found;
}"""


class _Texts(HTMLParser):
    """Collects the right-to-left texts that are in no element that isolates them."""

    def __init__(self) -> None:
        super().__init__()
        self.isolating: list[str] = []
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        # The style sheet isolates each text of an SVG drawing.
        if tag in ("bdi", "text", "title") or dict(attrs).get("dir") == "auto":
            self.isolating.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self.isolating[-1:] == [tag]:
            self.isolating.pop()

    def handle_data(self, data: str) -> None:
        if RIGHT_TO_LEFT.search(data) and not self.isolating:
            self.found.append(data)


def not_isolated(html: str) -> list[str]:
    """Right-to-left texts of a page that would reorder the text beside them."""
    texts = _Texts()
    texts.feed(html)
    return texts.found


# WCAG 2.2: contrast of every text with its background. Painting computes translucent colours.
CONTRAST = """() => {
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const paint = (colours) => {
    canvas.clearRect(0, 0, 1, 1);
    for (const colour of colours) { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); }
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const light = (rgb) => rgb
    .map((c) => c / 255).map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const low = [];
  for (const each of document.querySelectorAll("body *")) {
    const own = [...each.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || ["SCRIPT", "STYLE", "title"].includes(each.tagName)) continue;
    const behind = [];
    for (let e = each; e; e = e.parentElement) behind.unshift(getComputedStyle(e).backgroundColor);
    const style = getComputedStyle(each);
    const ink = each.closest("svg") ? style.fill : style.color;
    const [a, b] = [light(paint(behind)), light(paint([...behind, ink]))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) low.push([each.outerHTML.slice(0, 120), ratio]);
  }
  return low;
}"""
