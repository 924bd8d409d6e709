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
addEventListener("hashchange", showSection);
showSection();

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
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach(part => { part.open = true; }));
