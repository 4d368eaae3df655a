// Sorts and filters the table, switches lines off, and opens what is folded.
// `#sort=ratio`, `#sort=-ratio` and `#filter=svd` in the address do the same.
"use strict";

const table = document.getElementById("table");
const filter = document.getElementById("filter");
const rows = () => [...table.tBodies[0].rows];

function compare(a, b, direction) {
  if (a.textContent === "-" || b.textContent === "-") {
    return (a.textContent === "-") - (b.textContent === "-"); // dashes stay last
  }
  const [x, y] = [a.dataset.value ?? a.textContent, b.dataset.value ?? b.textContent];
  const numeric = x !== "" && y !== "" && !isNaN(x) && !isNaN(y);
  return direction * (numeric ? x - y : x.localeCompare(y, "en", { numeric: true }));
}

function sort(key, direction) {
  const heads = [...table.tHead.rows[0].cells];
  const at = heads.findIndex((head) => head.dataset.key === key);
  if (at < 0) return;
  heads.forEach((head) => head.removeAttribute("aria-sort"));
  heads[at].setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
  const sorted = rows().sort((a, b) => compare(a.cells[at], b.cells[at], direction));
  table.tBodies[0].append(...sorted);
}

function narrow() {
  const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
  for (const row of rows()) {
    const text = row.textContent.toLowerCase();
    row.hidden = !words.every((word) => text.includes(word));
  }
  const visible = rows().filter((row) => !row.hidden).length;
  document.getElementById("count").textContent = `${visible} of ${rows().length} rows`;
}

function readAddress() {
  const wanted = new URLSearchParams(location.hash.slice(1));
  const key = wanted.get("sort");
  if (key) sort(key.replace(/^-/, ""), key.startsWith("-") ? -1 : 1);
  if (wanted.has("filter")) filter.value = wanted.get("filter");
  narrow();
}

for (const head of table.tHead.rows[0].cells) {
  head.addEventListener("click", () => {
    sort(head.dataset.key, head.getAttribute("aria-sort") === "ascending" ? -1 : 1);
  });
}
for (const button of document.querySelectorAll("#legend button")) {
  button.addEventListener("click", () => {
    const on = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", on);
    for (const series of document.querySelectorAll("#charts .series")) {
      if (series.dataset.series === button.dataset.series) series.classList.toggle("off", !on);
    }
  });
}
for (const button of document.querySelectorAll("[data-open]")) {
  button.addEventListener("click", () => {
    const folded = [...document.querySelectorAll(`#${button.dataset.open} details`)];
    const open = folded.some((details) => !details.open);
    folded.forEach((details) => { details.open = open; });
    button.textContent = open ? "close all" : "open all";
  });
}
addEventListener("beforeprint", () => {
  document.querySelectorAll("#sizes details").forEach((details) => { details.open = true; });
});
filter.addEventListener("input", narrow);
addEventListener("hashchange", readAddress);
readAddress();
