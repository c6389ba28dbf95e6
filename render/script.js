// What the pages do beyond showing: theme, menu, tabs, copying, page contents and search.
"use strict";
const $ = (selector, root = document) => root.querySelector(selector);
const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];
const make = (tag, properties) => Object.assign(document.createElement(tag), properties);
const root = document.currentScript.dataset.root;
const { dataset } = document.documentElement;

// Light and dark: the page's head has set what is stored, or else what the system prefers
const showTheme = () => $(".theme").setAttribute("aria-pressed", dataset.theme === "dark");
$(".theme").onclick = () => {
  localStorage.theme = dataset.theme = dataset.theme === "dark" ? "light" : "dark";
  showTheme();
};
showTheme();

// The chapters, behind a button where the page is narrow
const menu = $(".menu");
const openMenu = (open) => {
  menu.setAttribute("aria-expanded", open);
  document.body.classList.toggle("menu-open", open);
};
menu.onclick = () => openMenu(menu.getAttribute("aria-expanded") !== "true");
$("#content").addEventListener("click", () => openMenu(false));

// Tabs: the arrow keys move between them
for (const list of $$("[role=tablist]")) {
  const tabs = $$("[role=tab]", list);
  const select = (chosen) => tabs.forEach((tab) => {
    tab.setAttribute("aria-selected", tab === chosen);
    tab.tabIndex = tab === chosen ? 0 : -1;
    document.getElementById(tab.getAttribute("aria-controls")).hidden = tab !== chosen;
  });
  tabs.forEach((tab, index) => {
    tab.onclick = () => select(tab);
    tab.onkeydown = ({ key }) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[key];
      if (step) tabs.at((index + step) % tabs.length).focus();
    };
    tab.onfocus = () => select(tab);
  });
  select(tabs[0]);
}

// Code has a button that copies it; what scrolls sideways can be reached with the keyboard
for (const block of $$("div.sourceCode")) {
  const button = make("button", { className: "copy", textContent: "Copy" });
  button.onclick = async () => {
    await navigator.clipboard.writeText($("code", block).textContent);
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  };
  block.append(button);
}
for (const box of $$("pre, .scroll, .cell-output")) {
  if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
}
addEventListener("beforeprint", () => $$("details").forEach((part) => { part.open = true; }));

// Mark where the reader is in the page's contents
const links = new Map($$("#contents a").map((link) => [link.hash.slice(1), link]));
const visible = new Set();
const observer = new IntersectionObserver((entries) => {
  entries.forEach(({ target: { id }, isIntersecting }) => {
    visible[isIntersecting ? "add" : "delete"](id);
  });
  const here = [...links.keys()].findLast((id) => visible.has(id));
  links.forEach((link, id) => link.classList.toggle("here", id === here));
}, { rootMargin: "-60px 0px -75% 0px" });
links.forEach((_, id) => observer.observe(document.getElementById(id)));

// Search: each word has to begin a word of a section; sections with it in their title come first
const input = $(".search input");
const results = $("#results");
let selected = -1;

function find(query) {
  const words = query.replaceAll("()", "").split(/\s+/).filter(Boolean)
    .map((word) => `(?<![\\p{L}\\p{N}_])${word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")}`);
  const tests = words.map((word) => new RegExp(word, "iu"));
  const any = new RegExp(`(${words.join("|")})`, "iu");
  const hits = (text) => tests.filter((test) => test.test(text)).length;
  const found = (window.searchIndex || []).map(([chapter, url, section, text]) => ({
    url, text, any, title: section ? `${chapter} › ${section}` : chapter,
    score: hits(section || chapter), all: hits(`${chapter} ${section} ${text}`) === words.length,
    own: hits(`${section || chapter} ${text}`),
  }));
  return found.filter((hit) => hit.all && hit.own)
    .sort((a, b) => b.score - a.score || b.own - a.own).slice(0, 30);
}

function marked(tag, text, any) {
  const element = make(tag);
  text.split(any).forEach((part, index) => {
    element.append(index % 2 ? make("mark", { textContent: part }) : part);
  });
  return element;
}

function showResults(open) {
  results.hidden = !open;
  input.setAttribute("aria-expanded", open);
  input.removeAttribute("aria-activedescendant");
  selected = -1;
}

function search() {
  const query = input.value.trim();
  const items = (query ? find(query) : []).map(({ url, text, any, title }, index) => {
    const item = make("li", { id: `result-${index}`, role: "option" });
    const start = Math.max(0, text.search(any) - 50);
    item.append(marked("b", title, any),
      marked("span", `${start ? "…" : ""}${text.slice(start, start + 160)}…`, any));
    item.onmousedown = () => { location.href = root + url; showResults(false); };
    return item;
  });
  const none = make("li", { role: "option", textContent: "Nothing found" });
  results.replaceChildren(...(items.length ? items : [none]));
  showResults(Boolean(query && window.searchIndex));
}

function move(step) {
  const items = $$("[id]", results);
  selected = (selected + step + items.length) % items.length;
  items.forEach((item, index) => item.setAttribute("aria-selected", index === selected));
  items[selected]?.scrollIntoView({ block: "nearest" });
  input.setAttribute("aria-activedescendant", items[selected]?.id);
}

input.onfocus = () => {
  if (window.searchIndex) return search();
  document.head.append(make("script", { src: `${root}search.js`, onload: search }));
};
input.oninput = search;
input.onblur = () => showResults(false);
input.onkeydown = (event) => {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (step) { event.preventDefault(); move(step); }
  if (event.key === "Enter") $$("[id]", results)[Math.max(selected, 0)]?.onmousedown();
  if (event.key === "Escape") input.blur();
};
addEventListener("keydown", (event) => {
  const typing = event.target.closest("input, textarea, select");
  if ((event.key === "/" && !typing) || (event.key === "k" && (event.ctrlKey || event.metaKey))) {
    event.preventDefault();
    input.focus();
  }
  if (event.key === "Escape") openMenu(false);
});
