// Random numbers: the stream of numpy's default_rng(seed).random(), so that a seed means the same text here and there.
// SeedSequence spreads the seed (O'Neill's seed_seq_fe), PCG64 draws from it (O'Neill 2014, XSL RR 128/64).

const MASK_64 = (1n << 64n) - 1n;
const MASK_128 = (1n << 128n) - 1n;
const PCG_MULTIPLIER = (2549297995355413924n << 64n) | 4865540595714422341n;

// Four 64-bit numbers from a whole number of any size.
function spreadSeed(seed) {
  const words = [];
  for (let rest = seed; rest > 0n || words.length === 0; rest >>= 32n) words.push(Number(rest & 0xffffffffn));
  const hasher = (start, multiplier) => (value) => {
    value = (value ^ start) >>> 0;
    start = Math.imul(start, multiplier);
    value = Math.imul(value, start);
    return (value ^ (value >>> 16)) >>> 0;
  };
  const mix = (x, y) => {
    const z = (Math.imul(0xca01f9dd, x) - Math.imul(0x4973f715, y)) | 0;
    return (z ^ (z >>> 16)) >>> 0;
  };
  const hash = hasher(0x43b0d7e5, 0x931e8875);
  const pool = [0, 1, 2, 3].map((i) => hash(words[i] ?? 0));
  for (let from = 0; from < Math.max(4, words.length); from++) {
    for (let to = 0; to < 4; to++) {
      if (from !== to) pool[to] = mix(pool[to], hash(from < 4 ? pool[from] : words[from]));
    }
  }
  const draw = hasher(0x8b51f9dd, 0x58f38ded);
  const half = Array.from({ length: 8 }, (_, i) => BigInt(draw(pool[i % 4])));
  return [0, 2, 4, 6].map((i) => half[i] | (half[i + 1] << 32n));
}

class RandomStream {
  // seed: a BigInt, 0 or more.
  constructor(seed) {
    const [a, b, c, d] = spreadSeed(seed);
    this.increment = ((((c << 64n) | d) << 1n) | 1n) & MASK_128;
    this.state = 0n;
    this.advance();
    this.state += (a << 64n) | b;
    this.advance();
  }

  advance() {
    this.state = (this.state * PCG_MULTIPLIER + this.increment) & MASK_128;
  }

  // The next number, at least 0 and below 1, with 53 random bits.
  next() {
    this.advance();
    const folded = (this.state >> 64n) ^ (this.state & MASK_64);
    const turn = this.state >> 122n;
    const bits = ((folded >> turn) | (folded << (64n - turn))) & MASK_64;
    return Number(bits >> 11n) / 2 ** 53;
  }
}
