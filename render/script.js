// What the pages do beyond showing: theme, copying, page contents and search.
"use strict";
const $ = (selector, root = document) => root.querySelector(selector);
const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];
const make = (tag, properties, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};
const root = document.currentScript.dataset.root;
const { dataset } = document.documentElement;

// Light and dark: the page's head has set what is stored, or else what the system prefers
const setTheme = (theme) => {
  dataset.theme = theme;
  $(".theme").setAttribute("aria-pressed", theme === "dark");
};
$(".theme").onclick = () => {
  setTheme(localStorage.theme = dataset.theme === "dark" ? "light" : "dark");
};
setTheme(dataset.theme);

// Code has a button that copies it; what scrolls sideways can be reached with the keyboard
for (const block of $$("div.sourceCode")) {
  const onclick = () => navigator.clipboard.writeText($("code", block).textContent);
  block.append(make("button", { className: "copy", onclick }, "Copy"));
}
for (const box of $$("pre, .scroll, .cell-output")) {
  if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
}

// Mark where the reader is in the page's contents
const links = $$("#contents a");
const topOf = ({ hash }) => document.getElementById(hash.slice(1)).getBoundingClientRect().top;
const showPlace = () => {
  const here = links.findLast((link) => topOf(link) < innerHeight / 4);
  links.forEach((link) => link.classList.toggle("here", link === here));
};
addEventListener("scroll", showPlace, { passive: true });
showPlace();

// Search: each word has to begin a word of a section; sections with it in their title come first
const input = $("search input");
const results = $("#results");
const escaped = (word) => word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");

function find(query) {
  const words = query.replaceAll("()", "").split(/\s+/).filter(Boolean)
    .map((word) => `(?<![\\p{L}\\p{N}_])${escaped(word)}`);
  const hits = (text) => words.filter((word) => RegExp(word, "iu").test(text)).length;
  const marked = (tag, text) => make(tag, {}, ...text.split(RegExp(`(${words.join("|")})`, "iu"))
    .map((part, index) => (index % 2 ? make("mark", {}, part) : part)));
  return window.searchIndex
    .map(([page, url, title, text]) => ({ page, url, title: title || page, text }))
    .filter(({ page, title, text }) =>
      hits(`${title} ${text}`) && hits(`${page} ${title} ${text}`) === words.length)
    .sort((a, b) => hits(b.title) - hits(a.title)).slice(0, 30)
    .map(({ page, url, title, text }) => {
      const start = Math.max(0, text.search(RegExp(words.join("|"), "iu")) - 50);
      return make("li", {}, make("a", { href: `${root}/${url}` },
        marked("b", title === page ? page : `${page} › ${title}`),
        marked("span", `${start ? "…" : ""}${text.slice(start, start + 160)}…`)));
    });
}

function search() {
  const found = input.value.trim() && window.searchIndex ? find(input.value) : [];
  results.replaceChildren(...found);
  if (input.value.trim() && !found.length) results.append(make("li", {}, "Nothing found"));
}

input.oninput = search;
input.onfocus = () => {
  if (window.searchIndex) search();
  else document.head.append(make("script", { src: `${root}/search.js`, onload: search }));
};
results.onclick = () => document.activeElement.blur();
addEventListener("keydown", (event) => {
  const stops = [input, ...$$("a", results)];
  const at = stops.indexOf(document.activeElement);
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (event.key === "/" && !event.target.closest("input, textarea, select")) input.focus();
  else if (at >= 0 && step) stops.at((at + step) % stops.length).focus();
  else if (at === 0 && event.key === "Enter") stops[1]?.click();
  else if (at >= 0 && event.key === "Escape") document.activeElement.blur();
  else return;
  event.preventDefault();
});
