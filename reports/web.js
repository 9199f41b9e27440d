"use strict";

// --- the page that export.py --format web writes: images in, cards with their captions out ---

const LARGE = 16e6; // pixels; phones have no larger canvas
const SHOWN = 2; // digits of log p
const input = document.querySelector(".drop input"), status = document.querySelector("#status");
const bar = document.querySelector("progress"), problems = document.querySelector("#problems");
const attentions = new WeakMap(); // card -> the attention of its words
let model = null; // { encoder, step, settings }
let last = Promise.resolve(); // images are captioned one after the other

const attentionOf = (card) => attentions.get(card);

async function load() {
  if (location.protocol === "file:") throw new Error("it has to be served: run python -m http.server in its folder");
  Object.assign(ort.env, { logLevel: "error" });
  Object.assign(ort.env.wasm, { numThreads: 1, wasmPaths: new URL(".", location.href).href });
  const settings = await (await get("model.json")).json();
  bar.hidden = false;
  const sizes = { encoder: 0, step: 0 }, done = { encoder: 0, step: 0 };
  const sum = ({ encoder, step }) => encoder + step;
  const [encoder, step] = await Promise.all(["encoder", "step"].map(async (name) => {
    const response = await get(`${name}.onnx`), parts = [];
    sizes[name] = Number(response.headers.get("content-length"));
    for (const reader = response.body.getReader(); ; ) {
      const { value } = await reader.read();
      if (!value) break;
      parts.push(value);
      done[name] += value.length;
      bar.value = sum(sizes) ? sum(done) / sum(sizes) : 0;
    }
    return new Uint8Array(await new Blob(parts).arrayBuffer());
  }));
  // One after the other: two at once would need the memory of both.
  const options = { executionProviders: ["wasm"] };
  model = {
    settings,
    encoder: await ort.InferenceSession.create(encoder, options),
    step: await ort.InferenceSession.create(step, options),
  };
}

async function get(name) {
  const response = await fetch(name);
  if (!response.ok) throw new Error(`${name} is missing in its folder (${response.status})`);
  return response;
}

// --- an image ---

async function add(file) {
  let image;
  try {
    image = await read(file);
  } catch {
    return report(`${file.name || "This"} is not an image that this browser can read.`);
  }
  const card = document.querySelector("#card").content.firstElementChild.cloneNode(true);
  const photo = card.querySelector("img");
  photo.src = URL.createObjectURL(file);
  card.querySelector(".name").textContent = file.name;
  main.prepend(card);
  try {
    await caption(card, image);
  } catch (error) {
    card.remove();
    report(`${file.name} could not be captioned: ${error.message}`);
  }
}

// The pixels of an image file, upright, on white, as data/transforms.py reads them.
async function read(file) {
  const bitmap = await createImageBitmap(file, { colorSpaceConversion: "none" });
  const scale = Math.min(1, Math.sqrt(LARGE / (bitmap.width * bitmap.height)));
  const surface = document.createElement("canvas");
  surface.width = Math.max(1, Math.floor(bitmap.width * scale));
  surface.height = Math.max(1, Math.floor(bitmap.height * scale));
  const context = surface.getContext("2d", { alpha: false, willReadFrequently: true });
  context.fillStyle = "white";
  context.fillRect(0, 0, surface.width, surface.height);
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, surface.width, surface.height);
  bitmap.close();
  return context.getImageData(0, 0, surface.width, surface.height);
}

async function caption(card, image) {
  const { size, interpolation } = model.settings, began = performance.now();
  await painted();
  let beams = [];
  for await (beams of beamSearch(model, resize(image, size, interpolation))) {
    write(card.querySelector(".words"), beams[0].words);
    await painted();
  }
  const [best, ...others] = beams, text = textOf(best.words), words = shown(best.words);
  card.classList.remove("busy");
  card.querySelector("img").alt = text;
  card.querySelector(".scores").hidden = false;
  card.querySelector(".scores b").textContent = logP(best.words);
  card.querySelector(".seconds").textContent = `${((performance.now() - began) / 1000).toFixed(1)} s`;
  card.querySelector("details").hidden = !others.length;
  for (const { words } of others) {
    const item = document.createElement("li"), number = document.createElement("small");
    number.textContent = logP(words);
    item.append(`${textOf(words)} `, number);
    card.querySelector("ol").append(item);
  }
  if (words.length && words[0].alphas) {
    const cells = words[0].alphas.length, side = Math.sqrt(cells);
    // As full_scale in reports/attention.py.
    const full = Math.max(Math.min(1, 4 / cells), ...words.map(({ alphas }) => Math.max(...alphas)));
    const light = Float32Array.from(words.flatMap(({ alphas }) => [...alphas]), (alpha) => alpha / full);
    attentions.set(card, { rows: side, columns: side, full, light });
    for (const word of card.querySelectorAll(".words span")) word.tabIndex = 0;
  }
  announcement.textContent = text;
}

const shown = (words) => words.filter(({ token }) => token !== EOS);
const textOf = (words) => shown(words).map(({ token }) => model.settings.words[token]).join(" ");
const logP = (words) => words.reduce((sum, { logProb }) => sum + logProb, 0).toFixed(SHOWN).replace("-", "−");

function write(line, words) {
  line.replaceChildren(...shown(words).flatMap(({ token, logProb }, i) => {
    const word = document.createElement("span");
    word.style.setProperty("--p", Math.round(100 * Math.exp(logProb)));
    word.textContent = model.settings.words[token];
    return i ? [" ", word] : [word];
  }));
}

// The browser shows what has changed while a timer is waited for; a hidden page has no frames to wait for.
const painted = () => new Promise((done) => setTimeout(done));

function report(sentence) {
  const line = document.createElement("p");
  line.textContent = sentence;
  problems.append(line);
}

// --- what the user does ---

function take(files) {
  if (!model) return;
  problems.replaceChildren();
  for (const file of files) last = last.then(() => add(file));
}

input.addEventListener("change", () => {
  take([...input.files]);
  input.value = ""; // the same file may be chosen again
});
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault(); // the browser would leave the page to show the file
    document.body.classList.toggle("dragging", kind === "dragover");
    if (kind === "drop") take([...event.dataTransfer.files]);
  });
}

status.textContent = "Loading the model …";
load().then(
  () => {
    input.disabled = false;
    status.innerHTML = "Drop images here, or <b>choose some</b>.";
  },
  (error) => report(`The model cannot be loaded: ${error.message}.`),
).finally(() => (bar.hidden = true));
if (settings) listen();
