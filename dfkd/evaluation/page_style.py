"""Style and script of the comparison's page; the script sorts the table by the column whose name is clicked."""

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #1a1a1a; background: #fff; }
body { max-width: 1480px; margin: 2rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.5rem; margin: 0 0 .4rem; } h2 { font-size: 1.1rem; margin: 2rem 0 .6rem; }
.wide { overflow-x: auto; } .hint { color: #666; font-size: .85rem; margin: .2rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid #e2e2e2; text-align: right; vertical-align: top; white-space: nowrap; }
th:first-child { text-align: left; }
thead th { border-bottom: 2px solid #444; cursor: pointer; vertical-align: bottom; }
thead th[aria-sort=ascending]::after { content: " ▲"; } thead th[aria-sort=descending]::after { content: " ▼"; }
tbody tr:hover { background: #f4f7fb; } tr.control { color: #666; background: #f7f7f7; }
small { color: #666; }
.badge { font-weight: normal; font-size: .75rem; color: #b3541e; border: 1px solid #b3541e; border-radius: 3px; }
.badge { padding: 0 .3rem; }
img { max-width: 100%; height: auto; display: block; } .pixels { image-rendering: pixelated; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; font-size: .9rem; }
dt { font-weight: 600; } dd { margin: 0; }
"""

SORT = """
document.querySelectorAll("thead th").forEach((head, column, heads) => head.addEventListener("click", () => {
  const rising = head.getAttribute("aria-sort") === "descending";
  const key = row => row.cells[column].dataset.value ?? row.cells[column].textContent;
  const body = document.querySelector("tbody");
  [...body.rows].sort((one, other) => {
    const [a, b] = [key(one), key(other)];
    if (a === "" || b === "") return (a === "") - (b === "");
    const order = isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b;
    return rising ? order : -order;
  }).forEach(row => body.append(row));
  heads.forEach(other => other.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", rising ? "ascending" : "descending");
}));
"""
