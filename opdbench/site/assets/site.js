// Sorting, filtering and copying. Pages are whole without it: the controls are hidden until this script shows them.
"use strict";

function value(row, column) {
  const cell = row.cells[column];
  const text = cell.dataset.v ?? cell.textContent.trim();
  const number = Number(text.replace(/,/g, ""));
  return text === "" || text === "–" ? null : Number.isNaN(number) ? text.toLowerCase() : number;
}

function compare(a, b) {
  if (typeof a === typeof b) return a < b ? -1 : a > b ? 1 : 0;
  return typeof a === "number" ? -1 : 1;
}

// Rows without a value come last, whichever way the others go; equal rows keep their order.
function sortBy(table, header) {
  const column = header.cellIndex, body = table.tBodies[0];
  const first = header.classList.contains("number") || header.dataset.first === "descending" ? "descending" : "ascending";
  const other = { ascending: "descending", descending: "ascending" };
  const order = header.hasAttribute("aria-sort") ? other[header.getAttribute("aria-sort")] : first;
  const sign = order === "ascending" ? 1 : -1;
  const rows = [...body.rows].map((row) => [value(row, column), row]);
  rows.sort(([a], [b]) => a === null || b === null ? (a === null) - (b === null) : sign * compare(a, b));
  for (const each of header.parentNode.cells) each.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", order);
  body.append(...rows.map(([, row]) => row));
}

function filterBy(table, controls) {
  const words = controls.querySelector("input[type=search]").value.toLowerCase().split(/\s+/).filter(Boolean);
  const wanted = [...controls.querySelectorAll("input[type=checkbox]:checked")].map((box) => box.value);
  let shown = 0;
  for (const row of table.tBodies[0].rows) {
    const text = row.textContent.toLowerCase(), has = (row.dataset.has ?? "").split(" ");
    row.hidden = !(words.every((word) => text.includes(word)) && wanted.every((each) => has.includes(each)));
    shown += !row.hidden;
  }
  const output = controls.querySelector("output"), all = table.tBodies[0].rows.length;
  output.dataset.what ??= output.textContent.replace(/^\S+ /, "");
  output.textContent = shown === all ? `${all} ${output.dataset.what}` : `${shown} of ${all} ${output.dataset.what}`;
}

for (const table of document.querySelectorAll("table.sortable")) {
  table.tHead.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button) sortBy(table, button.closest("th"));
  });
}

for (const controls of document.querySelectorAll(".controls")) {
  const table = document.getElementById(controls.dataset.for);
  if (!table) continue;
  controls.hidden = false;
  controls.addEventListener("input", () => filterBy(table, controls));
}

for (const button of document.querySelectorAll("[data-copy]")) {
  button.addEventListener("click", async () => {
    const code = button.parentNode.querySelector("code");
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
    } catch {  // a browser that does not allow it: select the text instead
      getSelection().selectAllChildren(code);
      button.textContent = "Selected";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 2000);
  });
}
