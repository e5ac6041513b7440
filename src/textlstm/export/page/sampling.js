// From logits to a token: repetition penalty, temperature, top-k, top-p, min-p, then a draw; the same to the bit as
// textlstm.sampling. Logits are in single precision, so each operation on them is rounded to it: by Math.fround, or by
// the Float32Array that takes the result. Weights of tokens are whole numbers, whose sums are exact.
// Removed tokens have -Infinity. Loops stand where spread arguments would overflow with a large vocabulary.

const { fround } = Math;

function largest(values) {
  let best = 0;
  for (let i = 1; i < values.length; i++) if (values[i] > values[best]) best = i;
  return best;
}

// Bits that a token costs under the model itself, whatever the settings.
function surprise(logits, id) {
  const top = logits[largest(logits)];
  let total = 0;
  for (let i = 0; i < logits.length; i++) total += Math.exp(logits[i] - top);
  return (Math.log(total) + top - logits[id]) / Math.LN2;
}

// The nearest whole number, of two as near the even one: so large a sum has no room for a fraction.
function nearest(value) {
  return value + 1.5 * 2 ** 52 - 1.5 * 2 ** 52;
}

const LOG2_E = fround(1.44269504);
const [LN2_HIGH, LN2_LOW] = [fround(0.693145752), fround(1.42860677e-6)];
const TAYLOR = [5040, 720, 120, 24, 6, 2, 1, 1].map((divisor) => fround(1 / divisor));
const POWERS = new Float32Array(Int32Array.from({ length: 255 }, (_, i) => i << 23).buffer); // 2^(i - 127)

// e^x in single precision, as textlstm.kernels.exponential.
function exponential(x) {
  x = Math.min(88, Math.max(-87, x));
  const n = nearest(fround(x * LOG2_E));
  const r = fround(fround(x - fround(n * LN2_HIGH)) - fround(n * LN2_LOW));
  let p = TAYLOR[0];
  for (let i = 1; i < TAYLOR.length; i++) p = fround(fround(p * r) + TAYLOR[i]);
  return fround(p * POWERS[n + 127]);
}

// Whole numbers in proportion to the probabilities of tokens, and their sum; the largest logit is 0 and weighs 2^30.
function weigh(logits) {
  const weights = new Float64Array(logits.length);
  let total = 0;
  for (let id = 0; id < weights.length; id++) {
    if (logits[id] > -22) total += weights[id] = nearest(exponential(logits[id]) * 2 ** 30); // else it rounds to 0
  }
  return { weights, total };
}

// Keeps the k likeliest tokens and all that equal the k-th.
function keepTopK(logits, k) {
  if (k <= 0 || k >= logits.length) return logits;
  const least = logits.slice().sort()[logits.length - k];
  return logits.map((value) => (value >= least ? value : -Infinity));
}

// Keeps the likeliest tokens, of equal ones the lowest ids, until their weights reach the mass.
function keepTopP(logits, mass) {
  if (mass >= 1) return logits;
  const { weights, total } = weigh(logits);
  const floor = ((1 - mass) * total) / (2 * logits.length); // all below it are half of what may be left out, at most
  const order = [];
  for (let id = 0; id < weights.length; id++) if (weights[id] >= floor) order.push(id);
  order.sort((a, b) => logits[b] - logits[a]); // which leaves equal ones in order
  const kept = new Float32Array(logits.length).fill(-Infinity);
  let reached = 0;
  for (const id of order) {
    kept[id] = logits[id];
    reached += weights[id];
    if (reached >= mass * total) break;
  }
  return kept;
}

// Keeps the tokens that are at least this likely relative to the likeliest, whose logit is 0.
function keepMinP(logits, share) {
  if (share <= 0) return logits;
  const least = Math.log(share);
  return logits.map((value) => (value >= least ? value : -Infinity));
}

// Draws an id below `size`. `seen` says which ids stand in the text; `random` gives one number, none at temperature 0.
function draw(logits, size, settings, seen, random) {
  let x = new Float32Array(logits.subarray(0, size));
  const penalty = settings.repetition_penalty;
  if (penalty !== 1) for (const id of seen) x[id] = x[id] > 0 ? x[id] / penalty : x[id] * penalty;
  const best = largest(x);
  if (settings.temperature === 0) return best;
  const top = x[best];
  const temperature = fround(Math.min(1e30, Math.max(1e-30, settings.temperature)));
  x = x.map((value) => fround(value - top) / temperature);
  x = keepMinP(keepTopP(keepTopK(x, settings.top_k), settings.top_p), settings.min_p);
  const { weights, total } = weigh(x);
  const place = Math.min(Math.floor(random.next() * total), total - 1); // the product may round up to the total
  let id = 0;
  for (let reached = weights[0]; reached <= place; reached += weights[id]) id += 1;
  return id;
}
