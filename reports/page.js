"use strict";

// --- search and order ---

const form = document.querySelector("form"), search = form.querySelector("input");
const order = form.querySelector("select"), status = form.querySelector("[role=status]");
const cards = [...main.children].map((card, number) => ({
  card,
  number,
  name: card.dataset.name,
  values: card.dataset.values.split(" ").map(Number), // NaN where an image has no such score
  text: (card.dataset.name + " " + card.querySelector("img").alt).toLowerCase(),
}));

function compare(order) {
  if (order === "number") return (a, b) => a.number - b.number;
  if (order === "name") return (a, b) => a.name.localeCompare(b.name, undefined, { numeric: true });
  const [measure, sign] = order.split(" ").map(Number);
  const key = ({ values }) => (Number.isNaN(values[measure]) ? Infinity : sign * values[measure]);
  return (a, b) => (key(a) === key(b) ? a.number - b.number : key(a) - key(b));
}

function filter() {
  const words = search.value.toLowerCase().split(/\s+/);
  let shown = 0;
  for (const { card, text } of cards) {
    card.hidden = !words.every((word) => text.includes(word));
    shown += !card.hidden;
  }
  status.textContent = shown === cards.length ? "" : `${shown} of ${cards.length}`;
}

function sort() {
  main.append(...cards.toSorted(compare(order.value)).map(({ card }) => card));
}

search.addEventListener("input", filter);
order.addEventListener("change", sort);
form.addEventListener("submit", (event) => event.preventDefault());
form.hidden = false; // without scripts it would do nothing
if (search.value) filter(); // the browser may restore the search after a reload
if (order.value !== "number") sort();

document.addEventListener("keydown", (event) => {
  if (event.key !== "/" || event.target === search || event.ctrlKey || event.metaKey || event.altKey) return;
  search.focus();
  event.preventDefault();
});

// --- the attention, of which attention.js draws one word's: one text for all images ---

let maps = null; // a promise of all maps, one byte per cell, unpacked when the first one is needed

async function unpack() {
  const text = document.querySelector("#maps").textContent.trim();
  const packed = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

async function attentionOf(card) {
  const [start, rows, columns, full] = card.dataset.map.split(" ").map(Number);
  const end = start + card.querySelectorAll(".words span").length * rows * columns;
  const levels = (await (maps ??= unpack())).subarray(start, end);
  return { rows, columns, full, light: Float32Array.from(levels, (level) => level / settings.levels) };
}

if (settings && "DecompressionStream" in window) {
  for (const word of main.querySelectorAll("[data-map] .words span")) word.tabIndex = 0;
  listen();
}
