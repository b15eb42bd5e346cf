// What a mark of a figure tells stands beside the pointer, with a continuation of that row.
const tip = document.getElementById("tip");
const sample = (mark) => {
  const link = mark.closest("a[href]");
  const place = link && document.getElementById(link.getAttribute("href").slice(1));
  const texts = [...(place?.querySelectorAll("tbody tr") ?? [])].map((row) => {
    const cell = row.lastElementChild, score = cell.querySelector("b");
    const scored = score ? ` (${score.textContent})` : "";
    return [row.cells[0].textContent, cell.lastChild.textContent, scored];
  });
  const [prompt, text, score] = texts.find(([, text]) => text.trim().length > 12) ?? [];
  return text ? `\n\n“${prompt.trim()}” … ${text.trim()}${score}` : "";
};
const show = (event) => {
  const mark = event.target.closest?.("[data-tip]")
    ?? event.target.querySelector?.(":scope > [data-tip]");
  tip.hidden = !mark;
  if (!mark) return;
  tip.textContent = mark.dataset.tip + sample(mark);
  const place = mark.getBoundingClientRect();
  const furthest = document.documentElement.clientWidth - tip.offsetWidth - 8;
  const left = Math.min(place.right + 8, furthest);
  const below = place.bottom + 8 + tip.offsetHeight < innerHeight;
  tip.style.left = `${Math.max(8, left) + scrollX}px`;
  tip.style.top = `${(below ? place.bottom + 8 : place.top - tip.offsetHeight - 8) + scrollY}px`;
};
addEventListener("pointerover", show);
addEventListener("focusin", show);
// A link may lead into what is folded.
const unfold = () => {
  const place = location.hash
    && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (!place) return;
  for (let part = place; part; part = part.parentElement)
    if (part.tagName === "DETAILS") part.open = true;
  place.scrollIntoView();
};
addEventListener("hashchange", unfold);
unfold();
// A column's head sorts its table, numbers as numbers, what is empty last.
const key = (row, place) => {
  const text = row.cells[place].textContent.trim().replaceAll("−", "-").replaceAll(",", "");
  return text === "·" ? null : Number.isNaN(parseFloat(text)) ? text : parseFloat(text);
};
addEventListener("click", (event) => {
  const head = event.target.closest?.("th:has(button)");
  if (!head) return;
  const up = head.ariaSort !== "ascending";
  const body = head.closest("table").tBodies[0];
  const rows = [...body.rows].map((row) => [key(row, head.cellIndex), row]);
  const order = (a, b) =>
    typeof a === typeof b ? (a < b ? -1 : +(a > b)) : typeof a === "number" ? -1 : 1;
  rows.sort(([a], [b]) =>
    (a === null) - (b === null) || (a === null ? 0 : (up ? 1 : -1) * order(a, b)));
  for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
  head.ariaSort = up ? "ascending" : "descending";
  body.append(...rows.map(([, row]) => row));
});
