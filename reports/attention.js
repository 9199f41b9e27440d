"use strict";

// --- the attention for a word: a canvas over the image, drawn as in reports/attention.py ---
//
// A page that inserts this file has cards, <article>, in <main>, and a function `attentionOf(card)`, which
// returns (a promise of) { rows, columns, full, light }: `light` is 0 to 1 in each cell for each word.

const main = document.querySelector("main");
const overlay = document.querySelector("#overlay").content.firstElementChild;
const canvas = overlay.querySelector("canvas"), announcement = document.querySelector("#announcement");
const settings = JSON.parse(document.querySelector("#settings")?.textContent ?? "null");
let hovered = null, focused = null, lit = null; // words; the attention of `lit` is on the image

// Before it is loaded, an image has no size.
function loaded(image) {
  return image.naturalWidth || new Promise((done) => image.addEventListener("load", done, { once: true }));
}

async function show(word) {
  if (word === lit) return;
  lit?.classList.remove("lit");
  lit = word;
  const card = word?.closest("article"), image = card?.querySelector(".image");
  const [attention] = word ? await Promise.all([attentionOf(card), loaded(image.firstElementChild)]) : [];
  if (word !== lit) return; // the pointer has moved to another word in the meantime
  overlay.parentElement?.classList.remove("attention");
  overlay.remove();
  if (!word) return;
  const { rows, columns, full } = attention, size = rows * columns;
  const at = [...word.parentNode.children].indexOf(word) * size;
  const light = attention.light.subarray(at, at + size);
  paint(canvas, light, rows, columns, image.firstElementChild);
  const [text, , most] = overlay.querySelectorAll("b, i");
  text.textContent = word.textContent;
  most.textContent = (100 * full).toFixed(full < 0.1 ? 1 : 0) + "% in a cell";
  image.append(overlay);
  image.classList.add("attention");
  word.classList.add("lit");
  if (word === focused) {
    const percent = word.style.getPropertyValue("--p");
    announcement.textContent = `${word.textContent}: ${percent} percent, attention ${place(light, rows, columns)}`;
  }
}

function paint(canvas, light, rows, columns, { naturalWidth, naturalHeight }) {
  const scale = settings.pixels / Math.max(naturalWidth, naturalHeight, 1);
  canvas.width = Math.max(1, Math.round(naturalWidth * scale));
  canvas.height = Math.max(1, Math.round(naturalHeight * scale));
  const down = spread(canvas.height, rows), across = spread(canvas.width, columns);
  const context = canvas.getContext("2d"), image = context.createImageData(canvas.width, canvas.height);
  for (let y = 0, i = 0; y < canvas.height; y++) {
    const line = new Float32Array(columns);
    for (let r = 0; r < rows; r++) for (let c = 0; c < columns; c++) line[c] += down[y][r] * light[r * columns + c];
    for (let x = 0; x < canvas.width; x++, i += 4) {
      let sum = 0;
      for (let c = 0; c < columns; c++) sum += across[x][c] * line[c];
      const [red, green, blue] = settings.heat[Math.round(Math.min(1, sum) * (settings.heat.length - 1))];
      image.data.set([red, green, blue, 255], i);
    }
  }
  context.putImageData(image, 0, 0);
}

function spread(pixels, cells) {
  return Array.from({ length: pixels }, (_, pixel) => {
    const position = ((pixel + 0.5) * cells) / pixels;
    const weights = Array.from({ length: cells }, (_, cell) =>
      Math.exp(-0.5 * ((position - cell - 0.5) / settings.blur) ** 2));
    const total = weights.reduce((a, b) => a + b);
    return weights.map((weight) => weight / total);
  });
}

function place(light, rows, columns) {
  const most = Math.max(...light), mean = light.reduce((a, b) => a + b) / light.length;
  if (most < 1.5 * mean) return "everywhere";
  const peak = light.indexOf(most);
  const third = (cell, cells, names) => names[Math.floor((3 * (cell + 0.5)) / cells)];
  const vertical = third(Math.floor(peak / columns), rows, ["top", "middle", "bottom"]);
  const horizontal = third(peak % columns, columns, ["left", "centre", "right"]);
  return `at the ${vertical} ${horizontal}`;
}

function listen() {
  document.documentElement.style.setProperty("--unlit", settings.unlit);
  paint(overlay.querySelector(".legend canvas"), Float32Array.from({ length: 64 }, (_, i) => i / 63), 1, 64,
    { naturalWidth: 64, naturalHeight: 1 });
  const word = (event) => event.target.closest?.(".words [tabindex]") ?? null;
  main.addEventListener("pointerover", (event) => show((hovered = word(event)) ?? focused));
  main.addEventListener("pointerleave", () => show((hovered = null) ?? focused));
  main.addEventListener("focusin", (event) => show(hovered ?? (focused = word(event))));
  main.addEventListener("focusout", () => show(hovered ?? (focused = null)));
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (focused && event.key === "Escape") {
    focused.blur();
  } else if (focused && event.key.startsWith("Arrow")) {
    next(focused, event.key)?.focus();
  } else {
    return;
  }
  event.preventDefault();
});

function next(word, key) {
  if (key === "ArrowRight") return word.nextElementSibling;
  if (key === "ArrowLeft") return word.previousElementSibling;
  const side = key === "ArrowDown" ? "nextElementSibling" : "previousElementSibling";
  let card = word.closest("article")[side];
  while (card && (card.hidden || !card.querySelector(".words [tabindex]"))) card = card[side];
  return card?.querySelector(".words [tabindex]");
}
