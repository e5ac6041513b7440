// From logits to a token: repetition penalty, temperature, top-k, top-p, min-p, then a draw; as textlstm.sampling.
// Removed tokens have -Infinity. Loops stand where spread arguments would overflow with a large vocabulary.

function largest(values) {
  let best = 0;
  for (let i = 1; i < values.length; i++) if (values[i] > values[best]) best = i;
  return best;
}

function softmax(logits) {
  const top = logits[largest(logits)];
  const probs = new Float64Array(logits.length);
  let total = 0;
  for (let id = 0; id < probs.length; id++) total += probs[id] = Math.exp(logits[id] - top);
  for (let id = 0; id < probs.length; id++) probs[id] /= total;
  return probs;
}

// Bits that a token costs under the model itself, whatever the settings.
function surprise(logits, id) {
  return -Math.log2(softmax(logits)[id]);
}

function keepTopK(logits, k) {
  if (k <= 0 || k >= logits.length) return logits;
  const least = logits.slice().sort()[logits.length - k];
  return logits.map((value) => (value >= least ? value : -Infinity));
}

// Keeps the likeliest tokens, of equal ones the lowest ids, until their probabilities reach the mass.
function keepTopP(logits, mass) {
  if (mass >= 1) return logits;
  const probs = softmax(logits);
  const floor = (1 - mass) / logits.length; // all tokens below it together are less than what may be left out
  const order = [];
  for (let id = 0; id < probs.length; id++) if (probs[id] >= floor) order.push(id);
  order.sort((a, b) => logits[b] - logits[a] || a - b);
  const kept = new Float64Array(logits.length).fill(-Infinity);
  let reached = 0;
  for (const id of order) {
    kept[id] = logits[id];
    reached += probs[id];
    if (reached >= mass) break;
  }
  return kept;
}

function keepMinP(logits, share) {
  if (share <= 0) return logits;
  const least = logits[largest(logits)] + Math.log(share);
  return logits.map((value) => (value >= least ? value : -Infinity));
}

// Draws an id below `size`. `seen` says which ids stand in the text; `random` gives one number, none at temperature 0.
function draw(logits, size, settings, seen, random) {
  let x = new Float64Array(logits.subarray(0, size));
  const penalty = settings.repetition_penalty;
  if (penalty !== 1) for (const id of seen) x[id] = x[id] > 0 ? x[id] / penalty : x[id] * penalty;
  const best = largest(x);
  if (settings.temperature === 0) return best;
  const top = x[best];
  x = x.map((value) => (value - top) / settings.temperature);
  x = keepMinP(keepTopP(keepTopK(x, settings.top_k), settings.top_p), settings.min_p);
  const below = softmax(x);
  for (let id = 1; id < size; id++) below[id] += below[id - 1];
  const mark = random.next() * below[size - 1];
  const id = below.findIndex((value) => value > mark);
  return id >= 0 ? id : below.indexOf(below[size - 1]); // the product may round up to the total
}
