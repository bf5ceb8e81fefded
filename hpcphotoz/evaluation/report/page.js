// Sorts a table by a column when the button in its head is pressed: numbers by value, other columns by text.
function value(cell, numeric) {
  const text = cell.textContent.trim();
  if (!numeric) return text;
  if (text.startsWith(">")) return Infinity;
  return parseFloat(text.replaceAll(",", "").replace("−", "-"));  // NaN: no number, at the end
}

function sort(table, column, numeric, sign) {
  const rows = [...table.tBodies[0].rows].map((row) => [value(row.cells[column], numeric), row]);
  const order = numeric
    ? ([a], [b]) => Number.isNaN(a) - Number.isNaN(b) || (a === b ? 0 : sign * (a < b ? -1 : 1))
    : ([a], [b]) => sign * a.localeCompare(b, undefined, { numeric: true });
  table.tBodies[0].append(...rows.sort(order).map(([, row]) => row));
}

for (const table of document.querySelectorAll("table")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    button.addEventListener("click", () => {
      const descending = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", descending ? "descending" : "ascending");
      sort(table, column, head.classList.contains("number"), descending ? -1 : 1);
    });
    head.append(button);
  });
}
