"use strict";
// Sorting is done by sortable.min.js. Here: the theme, figures in a dialog, and links into closed sections.
const root = document.documentElement;

const theme = document.getElementById("theme");
const isDark = () =>
  root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
const setTheme = (name) => {
  if (name) root.dataset.theme = name;
  theme.setAttribute("aria-pressed", isDark());
};
let remembered = null;
try {
  remembered = localStorage.getItem("theme");
} catch {} // A browser may forbid it to files.
setTheme(remembered);
theme.hidden = false;
theme.addEventListener("click", () => {
  setTheme(isDark() ? "light" : "dark");
  try {
    localStorage.setItem("theme", root.dataset.theme);
  } catch {}
});

const dialog = document.getElementById("viewer");
const shown = dialog.querySelector("img");
const zoom = dialog.querySelector("input");
const MIN_WIDTH = 800; // Pixels at which the small print of a figure can be read.
const setZoom = () => {
  shown.style.width = `${zoom.value}%`;
};
zoom.addEventListener("input", setZoom);
for (const opener of document.querySelectorAll("button.figure")) {
  opener.addEventListener("click", () => {
    const image = opener.querySelector("img");
    shown.src = image.src;
    shown.alt = image.alt;
    document.getElementById("viewer-title").textContent = opener.dataset.title;
    dialog.showModal(); // Closes at Escape, and gives the focus back.
    zoom.value = Math.ceil((100 * MIN_WIDTH) / shown.parentElement.clientWidth); // Within the slider's range.
    setZoom();
  });
}
dialog.addEventListener("click", (event) => {
  if (event.target === dialog) dialog.close();
});

const openTarget = () => {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  for (let place = target; place; place = place.parentElement) {
    if (place.tagName === "DETAILS") place.open = true;
  }
  target?.scrollIntoView();
};
addEventListener("hashchange", openTarget);
if (location.hash) openTarget();

for (const button of document.querySelectorAll("button.all")) {
  button.hidden = false;
  button.addEventListener("click", () => {
    const open = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", open);
    for (const details of document.querySelectorAll("details.run")) details.open = open;
  });
}
