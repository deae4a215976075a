"use strict";
(() => {
  // A cell's data-key is the number that it begins with. Cells without one stay at the end.
  const compareNumbers = (one, other) => Number(one.dataset.key) - Number(other.dataset.key);
  const compareTexts = (one, other) =>
    one.textContent.localeCompare(other.textContent, undefined, { numeric: true });

  const sort = (table, column, header) => {
    const body = table.tBodies[0];
    const isNumber = header.classList.contains("number");
    // The best numbers and the first names come first.
    const first = isNumber ? "descending" : "ascending";
    const last = isNumber ? "ascending" : "descending";
    const order = header.getAttribute("aria-sort") === first ? last : first;
    const sign = order === "ascending" ? 1 : -1;
    const rows = Array.from(body.rows);
    const isMissing = (row) => isNumber && !("key" in row.cells[column].dataset);
    const known = rows.filter((row) => !isMissing(row));
    known.sort(
      (one, other) =>
        sign * (isNumber ? compareNumbers : compareTexts)(one.cells[column], other.cells[column]),
    );
    body.append(...known, ...rows.filter(isMissing));
    for (const other of header.parentElement.cells) {
      other.setAttribute("aria-sort", other === header ? order : "none");
    }
  };

  for (const table of document.querySelectorAll("table.sortable")) {
    Array.from(table.tHead.rows[0].cells).forEach((header, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...header.childNodes);
      button.addEventListener("click", () => sort(table, column, header));
      header.append(button);
      header.setAttribute("aria-sort", "none");
    });
  }

  // Paper shows everything.
  window.addEventListener("beforeprint", () => {
    for (const details of document.querySelectorAll("details")) {
      details.open = true;
    }
  });
})();
