"use strict";

// --- Image.resize of Pillow, to the same bytes: the model sees the pixels that it was trained with ---
//
// An enlarged image is interpolated; in a reduced one, every pixel counts, because the filter is as much wider.
// The weights are integers, and each row is rounded before the columns are computed, as in Pillow's Resample.c.

const BITS = 22; // of the weights, after the point
const FILTERS = {
  bilinear: { support: 1, at: (x) => Math.max(0, 1 - Math.abs(x)) },
  bicubic: { support: 2, at: (x) => cubic(Math.abs(x)) },
};

function cubic(x) {
  if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * -0.5 : 0;
}

// For each of `to` pixels: the first of the `from` pixels that it is made of, and the weight of each.
function taps(from, to, { support, at }) {
  const scale = from / to, stretch = Math.max(1, scale), shrink = 1 / stretch;
  return Array.from({ length: to }, (_, pixel) => {
    const centre = (pixel + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - support * stretch + 0.5));
    const end = Math.min(from, Math.trunc(centre + support * stretch + 0.5));
    const weights = Array.from({ length: end - first }, (_, i) => at((i + first - centre + 0.5) * shrink));
    const total = weights.reduce((a, b) => a + b);
    return { first, weights: Int32Array.from(weights, (weight) => Math.round((weight / total) * 2 ** BITS)) };
  });
}

// RGBA pixels -> (size, size, 3) bytes.
function resize({ width, height, data }, size, interpolation) {
  const across = taps(width, size, FILTERS[interpolation]), down = taps(height, size, FILTERS[interpolation]);
  const rows = new Uint8ClampedArray(height * size * 3), result = new Uint8ClampedArray(size * size * 3);
  const half = 1 << (BITS - 1);
  for (let y = 0, to = 0; y < height; y++) {
    for (const { first, weights } of across) {
      let red = half, green = half, blue = half;
      for (let i = 0, from = 4 * (y * width + first); i < weights.length; i++, from += 4) {
        red += data[from] * weights[i];
        green += data[from + 1] * weights[i];
        blue += data[from + 2] * weights[i];
      }
      rows[to++] = red >> BITS;
      rows[to++] = green >> BITS;
      rows[to++] = blue >> BITS;
    }
  }
  const line = size * 3;
  for (let y = 0, to = 0; y < size; y++) {
    const { first, weights } = down[y];
    for (let x = 0; x < line; x++) {
      let sum = half;
      for (let i = 0, from = first * line + x; i < weights.length; i++, from += line) sum += rows[from] * weights[i];
      result[to++] = sum >> BITS;
    }
  }
  return new Uint8Array(result.buffer);
}
