"use strict";

// --- beam search around the two graphs, as in models/beam_search.py and caption_onnx.py ---

const SOS = 1, EOS = 2;

// Yields the beams after each step, best first; the last ones are finished. A beam has the log-probabilities
// `total`, which it is ranked by, and those of its words, which are the model's own.
async function* beamSearch({ encoder, step, settings }, pixels) {
  const { size, beam: width, max_length, length_penalty } = settings;
  let state = await encoder.run({ pixels: new ort.Tensor("uint8", pixels, [1, size, size, 3]) });
  let beams = [{ token: SOS, total: 0, length: 0, score: 0, finished: false, words: [] }];
  for (let t = 0; t <= max_length && !beams.every((beam) => beam.finished); t++) {
    const tokens = BigInt64Array.from(beams, (beam) => BigInt(beam.token));
    const found = await step.run({ tokens: new ort.Tensor("int64", tokens, [1, beams.length]), ...state });
    const candidates = beams.flatMap((beam, parent) =>
      beam.finished ? { ...beam, parent } : continuations(beam, parent, found, settings, t === max_length));
    for (const each of candidates) each.score = each.total / each.length ** length_penalty;
    beams = candidates.sort((a, b) => b.score - a.score).slice(0, width);
    state = Object.fromEntries(Object.entries(state).map(([name, tensor]) =>
      [name, name.startsWith("sequence_") ? select(found[name.replace("sequence_", "next_")], beams) : tensor]));
    yield beams;
  }
}

function continuations(beam, parent, { log_probs, alphas }, { beam: width, never, excluded }, mustEnd) {
  const own = row(log_probs, parent);
  // Tokens that are never chosen have no share of the probability; excluded words keep theirs.
  let total = 0;
  own.forEach((logProb, token) => (total += never.includes(token) ? 0 : Math.exp(logProb)));
  const allowed = (token) => !never.includes(token) && !excluded.includes(token);
  const words = mustEnd ? [EOS] : [...own.keys()].filter(allowed).sort((a, b) => own[b] - own[a]).slice(0, width);
  return words.map((token) => ({
    token,
    parent,
    total: beam.total + own[token] - Math.log(total),
    length: beam.length + 1,
    finished: token === EOS,
    words: [...beam.words, { token, logProb: own[token], alphas: alphas && row(alphas, parent) }],
  }));
}

// The numbers of one beam in a tensor (1, K, ...).
function row({ data, dims }, beam) {
  const size = dims.slice(2).reduce((a, b) => a * b, 1);
  return data.subarray(beam * size, (beam + 1) * size);
}

// The rows of these beams' parents, as a tensor (1, K, ...).
function select(tensor, beams) {
  const rows = beams.map(({ parent }) => row(tensor, parent));
  const data = new tensor.data.constructor(rows.length * rows[0].length);
  rows.forEach((each, i) => data.set(each, i * each.length));
  return new ort.Tensor(tensor.type, data, [1, rows.length, ...tensor.dims.slice(2)]);
}
