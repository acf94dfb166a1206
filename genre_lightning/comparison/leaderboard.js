// Highlights a group of runs in every chart and table: while pointed at or focused, or kept by a click.
{
  const rows = [...document.querySelectorAll("#ranking-table tbody tr")];
  const parts = [...document.querySelectorAll("[data-g]")];
  const readout = document.querySelector(".readout");
  const kept = new Set();
  let pointed = null;

  // isolated, so that a right-to-left name does not reorder the text beside it
  const told = (row) => {
    const name = document.createElement("bdi");
    name.textContent = row.dataset.name;
    return [name, `: ${row.dataset.told}`];
  };
  const show = () => {
    const groups = new Set(kept);
    if (pointed) groups.add(pointed.g);
    document.body.classList.toggle("lit", groups.size > 0);
    for (const part of parts) {
      const { g, r } = part.dataset;
      // only the row or curve of a single run selects that run rather than its group
      const other = pointed?.r !== undefined && pointed.g === g && !kept.has(g) && r !== undefined && r !== pointed.r;
      const on = groups.has(g) && !other;
      // a highlighted line is drawn on top of the others
      if (on && !part.matches(".on") && part.parentNode.matches(".lines")) part.parentNode.append(part);
      part.classList.toggle("on", on);
      part.classList.toggle("kept", kept.has(g));
      if (part.matches("button")) part.setAttribute("aria-pressed", kept.has(g));
    }
    const shown = rows.filter((row) => groups.has(row.dataset.g));
    readout.hidden = shown.length === 0;
    const first = shown.slice(0, 4).flatMap((row, place) => [place ? " · " : "", ...told(row)]);
    readout.replaceChildren(...first, shown.length > 4 ? " …" : "");
  };
  const point = (part) => {
    pointed = part && { g: part.dataset.g, r: part.closest("svg, #runs-table") ? part.dataset.r : undefined };
    show();
  };
  const keep = (g) => {
    if (!kept.delete(g)) kept.add(g);
    show();
  };

  // the rank becomes a button, for the keyboard
  for (const row of rows) {
    const button = document.createElement("button");
    button.type = "button";
    button.dataset.g = row.dataset.g;
    button.setAttribute("aria-label", `Light up ${row.dataset.name}, ${row.dataset.told}`);
    button.append(...row.cells[0].childNodes);
    row.cells[0].append(button);
    parts.push(button);
  }

  // in a drawing of thin lines, the pointer selects the nearest one
  const lines = new Map();
  const points = (path) => {
    if (!lines.has(path)) {
      const count = Math.min(200, Math.max(2, Math.ceil(path.getTotalLength() / 6)));
      const length = path.getTotalLength();
      lines.set(path, Array.from({ length: count }, (_, i) => path.getPointAtLength((length * i) / (count - 1))));
    }
    return lines.get(path);
  };
  const nearest = (drawing, event) => {
    let best = null;
    let least = 14;
    const paths = drawing.querySelectorAll(".run .curve");
    if (!paths.length) return null;
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(paths[0].getScreenCTM().inverse());
    for (const path of paths) {
      for (const { x, y } of points(path)) {
        const distance = Math.hypot(x - at.x, y - at.y);
        if (distance < least) [least, best] = [distance, path.parentNode];
      }
    }
    return best;
  };
  const meant = (event) => {
    const drawing = event.target.closest("svg.curves, svg.parallel");
    return drawing ? nearest(drawing, event) : event.target.closest("[data-g]");
  };
  let last = null;
  const change = (part) => {
    if (part !== last) point((last = part));
  };
  document.addEventListener("pointermove", (event) => event.pointerType === "mouse" && change(meant(event)));
  document.documentElement.addEventListener("pointerleave", () => change(null));
  document.addEventListener("focusin", (event) => {
    if (event.target.matches(":focus-visible")) change(event.target.closest("[data-g]"));
  });
  document.addEventListener("click", (event) => {
    const part = meant(event);
    if (part && !event.target.closest("a") && !getSelection().toString()) keep(part.dataset.g);
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    kept.clear();
    change(null);
    show();
  });
}
