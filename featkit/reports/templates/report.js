"use strict";

// Tables are sorted by the buttons that stand in their headers; what to sort by is in data-sort, else the text.
function value(row, column) {
  const cell = row.cells[column];
  const given = cell.dataset.sort ?? cell.textContent;
  return given !== "" && !Number.isNaN(Number(given)) ? Number(given) : given;
}

function order(a, b) {
  if (a === b) return 0;
  if (a === "") return 1;
  if (b === "") return -1;
  if (typeof a === typeof b && typeof a === "number") return a - b;
  return String(a).localeCompare(String(b));
}

function sort(table, header) {
  const descending = header.getAttribute("aria-sort") === "ascending";
  const sign = descending ? -1 : 1;
  const rows = Array.from(table.tBodies[0].rows, (row) => [value(row, header.cellIndex), row]);
  rows.sort(([a], [b]) => (a === "" || b === "" ? order(a, b) : sign * order(a, b)));
  table.tBodies[0].append(...rows.map(([, row]) => row));
  for (const other of header.parentElement.cells) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", descending ? "descending" : "ascending");
}

for (const table of document.querySelectorAll("table.sortable")) {
  for (const header of table.tHead.rows[0].cells) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    header.append(button);
    button.addEventListener("click", () => sort(table, header));
  }
}

// Of several panels, one is shown: that which the select box names. Without this script all are.
for (const box of document.querySelectorAll(".switch")) {
  const panels = box.parentElement.querySelectorAll("[data-panel]");
  const select = box.querySelector("select");
  const show = () => panels.forEach((panel) => { panel.hidden = panel.dataset.panel !== select.value; });
  select.addEventListener("change", show);
  box.hidden = false;
  show();
}
