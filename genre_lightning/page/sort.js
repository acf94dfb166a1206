// Sorts tables: a heading with data-sort becomes a button. Without this script they stay as they are.
"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    if (!heading.dataset.sort) return;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const textual = heading.dataset.sort === "text";
      const first = textual ? "ascending" : "descending";
      const other = textual ? "descending" : "ascending";
      const order = heading.getAttribute("aria-sort") === first ? other : first;
      headings.forEach((each) => each.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      const value = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
      const rows = [...body.rows].map((row) => [value(row), row]);
      rows.sort(([a], [b]) => {
        if (textual) return sign * a.localeCompare(b);
        // undefined values come last in either order
        if (a === "" || b === "") return (a === "") - (b === "");
        return sign * (a - b);
      });
      body.append(...rows.map(([, row]) => row));
    });
  });
}
