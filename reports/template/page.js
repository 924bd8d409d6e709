"use strict";

// Sections are tabs: the address says which one is shown, so that links and the back button work. Print shows all.
const sections = [...document.querySelectorAll("main > section")];
const tabs = [...document.querySelectorAll("nav a")];
function showSection() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  const shown = target?.closest("main > section") ?? sections[0];
  for (const section of sections) section.hidden = section !== shown;
  for (const tab of tabs) {
    if (tab.hash !== `#${shown.id}`) { tab.removeAttribute("aria-current"); continue; }
    tab.setAttribute("aria-current", "page");
    tab.scrollIntoView({ block: "nearest", inline: "center" });
  }
  for (let part = target?.closest("details"); part; part = part.parentElement.closest("details")) part.open = true;
  if (target && target !== shown) target.scrollIntoView(); else scrollTo(0, 0);
}
// A click on a heading sorts by it, a second one turns the order.
for (const table of document.querySelectorAll("table.sortable")) {
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => heading.firstElementChild.addEventListener("click", () => {
    const direction = heading.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    headings.forEach(other => other.removeAttribute("aria-sort"));
    heading.setAttribute("aria-sort", direction === 1 ? "ascending" : "descending");
    const key = row => row.cells[column].dataset.sort;
    const order = (a, b) => {
      if (a === "" || b === "") return (a === "") - (b === "");
      const difference = Number(a) - Number(b);
      return direction * (Number.isNaN(difference) ? a.localeCompare(b) : difference);
    };
    const body = table.tBodies[0];
    body.append(...[...body.rows].sort((first, second) => order(key(first), key(second))));
  }));
}

// Long tables get a search box, and a choice for each column that holds few different words.
function choice(heading, column, rows) {
  const words = [...new Set(rows.map(row => row.cells[column].textContent))];
  const isNumber = rows[0].cells[column].classList.contains("number");
  if (words.length < 2 || words.length > 16 || words.length > rows.length / 2 || isNumber && words.length > 6) return null;
  const select = document.createElement("select");
  select.ariaLabel = heading;
  select.append(new Option(`${heading}: all`, ""), ...words.map(word => new Option(word, word)));
  return select;
}
for (const table of document.querySelectorAll("table.sortable")) {
  const rows = [...table.tBodies[0].rows];
  if (rows.length < 9) continue;
  const search = Object.assign(document.createElement("input"), { type: "search", placeholder: "Filter", ariaLabel: "Filter rows" });
  const headings = [...table.tHead.rows[0].cells].map(heading => heading.textContent);
  const choices = headings.map((heading, column) => choice(heading, column, rows));
  const count = document.createElement("output");
  const bar = document.createElement("div");
  bar.className = "filters";
  bar.append(search, ...choices.filter(Boolean), count);
  bar.addEventListener("input", () => {
    const wanted = search.value.toLowerCase();
    for (const row of rows) {
      const fits = choices.every((select, column) => !select?.value || row.cells[column].textContent === select.value);
      row.hidden = !fits || !row.textContent.toLowerCase().includes(wanted);
    }
    const shown = rows.filter(row => !row.hidden).length;
    count.value = shown === rows.length ? "" : `${shown} of ${rows.length} rows`;
  });
  table.parentElement.before(bar);
}

// Pointing at a mark of a figure, tapping it, or walking along the marks with the arrow keys shows what is behind it.
const tip = document.getElementById("tip");
const REACH = 16;
const found = new WeakMap();
let pointed = null;
function marksOf(svg) {
  if (!found.has(svg)) {
    const frame = svg.getBoundingClientRect();
    found.set(svg, [...svg.querySelectorAll(".mark")].map(element => {
      const title = element.querySelector("title"), box = element.getBoundingClientRect();
      // The browser would show the title a second time.
      title.remove();
      const x = (box.x + box.width / 2 - frame.x) / frame.width, y = (box.y + box.height / 2 - frame.y) / frame.height;
      return { element, words: title.textContent, x, y };
    }));
  }
  return found.get(svg);
}
function hideTip() {
  document.querySelector(".mark.on")?.classList.remove("on");
  tip.hidden = true;
  pointed = null;
}
function showTip(svg, mark) {
  hideTip();
  pointed = [svg, mark];
  mark.element.classList.add("on");
  tip.textContent = mark.words;
  tip.hidden = false;
  const frame = svg.getBoundingClientRect(), width = tip.offsetWidth, height = tip.offsetHeight;
  const x = frame.x + mark.x * frame.width, y = frame.y + mark.y * frame.height;
  tip.style.left = `${Math.max(8, Math.min(x - width / 2, innerWidth - width - 8))}px`;
  tip.style.top = `${y - height - 14 > 8 ? y - height - 14 : y + 14}px`;
}
function nearest(svg, event) {
  const frame = svg.getBoundingClientRect();
  const distance = mark => Math.hypot(frame.x + mark.x * frame.width - event.clientX, frame.y + mark.y * frame.height - event.clientY);
  let best = null, least = REACH;
  for (const mark of marksOf(svg)) {
    const here = distance(mark);
    if (here < least) { best = mark; least = here; }
  }
  return best;
}
for (const plot of document.querySelectorAll(".plot")) {
  const svg = plot.querySelector("svg");
  let place = -1;
  for (const kind of ["pointermove", "pointerdown"]) {
    plot.addEventListener(kind, event => {
      const mark = nearest(svg, event);
      if (mark) showTip(svg, mark); else hideTip();
    });
  }
  plot.addEventListener("pointerleave", event => { if (event.pointerType === "mouse") hideTip(); });
  plot.addEventListener("blur", hideTip);
  plot.addEventListener("keydown", event => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key], marks = marksOf(svg);
    if (event.key === "Escape") hideTip();
    if (!step || !marks.length) return;
    event.preventDefault();
    place = (Math.max(place, step < 0 ? 0 : -1) + step + marks.length) % marks.length;
    showTip(svg, marks[place]);
  });
}
addEventListener("scroll", () => { if (pointed) showTip(...pointed); }, { passive: true, capture: true });

addEventListener("hashchange", () => { hideTip(); showSection(); });
showSection();
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach(part => { part.open = true; }));
