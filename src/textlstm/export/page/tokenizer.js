// Text to ids and back: the three kinds of tokenizer that a model file can hold.
// A tokenizer has `size` (ids that text is written with), encode(text) -> ids and bytes(id) -> Uint8Array.

const utf8 = new TextEncoder();

// The borders of words. Written for engines without inline flags: `(?i:'s)` and `\s` are spelled out as Unicode has them.
const LETTERS_UP = "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]";
const LETTERS_LOW = "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]";
const CONTRACTION = "'(?:[sSſtTmMdD]|[rR][eE]|[vV][eE]|[lL][lL])";
const SPACES = "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
const PATTERNS = {
  words:
    "'(?:[sdmt]|ll|ve|re)| ?\\p{L}[\\p{L}\\p{M}\\u200c\\u200d]*| ?\\p{N}| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+",
  gpt2: "'(?:[sdmt]|ll|ve|re)| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+",
  cl100k:
    `${CONTRACTION}|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|${SPACES}`,
  o200k:
    `[^\\r\\n\\p{L}\\p{N}]?${LETTERS_UP}*${LETTERS_LOW}+(?:${CONTRACTION})?` +
    `|[^\\r\\n\\p{L}\\p{N}]?${LETTERS_UP}+${LETTERS_LOW}*(?:${CONTRACTION})?` +
    `|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|${SPACES}`,
};

function wordPattern(name) {
  const unicode = PATTERNS[name].replaceAll("\\s", "\\p{White_Space}").replaceAll("\\S", "\\P{White_Space}");
  return new RegExp(unicode, "gu");
}

class ByteTokenizer {
  size = 256;

  encode(text) {
    return Array.from(utf8.encode(text));
  }

  bytes(id) {
    return Uint8Array.of(id);
  }
}

class CharTokenizer {
  // An id for each character of a table, then, with the fallback, 256 ids for the bytes of all others.
  constructor({ characters, byte_fallback }) {
    this.table = Array.from(characters);
    this.ids = new Map(this.table.map((character, id) => [character, id]));
    this.size = this.table.length + (byte_fallback ? 256 : 0);
    this.fallback = byte_fallback;
    this.substitute = this.ids.get("?") ?? this.ids.get(" ") ?? 0;
  }

  encode(text) {
    const ids = [];
    for (const character of text) {
      const id = this.ids.get(character);
      if (id !== undefined) ids.push(id);
      else if (!this.fallback) ids.push(this.substitute);
      else for (const byte of utf8.encode(character)) ids.push(this.table.length + byte);
    }
    return ids;
  }

  bytes(id) {
    return id < this.table.length ? utf8.encode(this.table[id]) : Uint8Array.of(id - this.table.length);
  }
}

class BPETokenizer {
  // Byte-level byte-pair encoding: ids 0 .. 255 are bytes, id 256 + k is what merge k makes.
  constructor({ pattern, byte_order, merges }) {
    this.pattern = wordPattern(pattern);
    this.size = 256 + merges.length / 2;
    this.tokens = byte_order.map((byte) => Uint8Array.of(byte));
    for (let id = 256; id < this.size; id++) {
      const left = this.tokens[merges[2 * id - 512]];
      const right = this.tokens[merges[2 * id - 511]];
      const token = new Uint8Array(left.length + right.length);
      token.set(left);
      token.set(right, left.length);
      this.tokens.push(token);
    }
    // Where two merges make the same bytes, the later id stands for them.
    const spelling = this.tokens.map((token) => String.fromCharCode(...token));
    const named = new Map(spelling.map((bytes, id) => [bytes, id]));
    const canonical = spelling.map((bytes) => named.get(bytes));
    this.byteIds = new Array(256);
    byte_order.forEach((byte, id) => (this.byteIds[byte] = id));
    this.ranks = new Map(); // pair of ids -> rank
    this.results = canonical.slice(256); // rank -> id
    for (let rank = 0; rank < this.size - 256; rank++) {
      this.ranks.set(this.key(canonical[merges[2 * rank]], canonical[merges[2 * rank + 1]]), rank);
    }
    this.known = new Map(); // words that were encoded before
  }

  key(left, right) {
    return left * this.size + right;
  }

  encode(text) {
    const ids = [];
    for (const [word] of text.matchAll(this.pattern)) {
      let parts = this.known.get(word);
      if (parts === undefined) {
        parts = this.merge(Array.from(utf8.encode(word), (byte) => this.byteIds[byte]));
        if (word.length < 32 && this.known.size < 50000) this.known.set(word, parts);
      }
      for (const id of parts) ids.push(id);
    }
    return ids;
  }

  // Applies the earliest merge that applies, everywhere from left to right, until none does.
  merge(ids) {
    for (;;) {
      let best = Infinity;
      for (let i = 0; i + 1 < ids.length; i++) {
        best = Math.min(best, this.ranks.get(this.key(ids[i], ids[i + 1])) ?? Infinity);
      }
      if (best === Infinity) return ids;
      const merged = [];
      for (let i = 0; i < ids.length; i++) {
        const found = i + 1 < ids.length && this.ranks.get(this.key(ids[i], ids[i + 1])) === best;
        merged.push(found ? this.results[best] : ids[i]);
        if (found) i++;
      }
      ids = merged;
    }
  }

  bytes(id) {
    return this.tokens[id];
  }
}

function makeTokenizer(fields) {
  const kinds = { byte: ByteTokenizer, char: CharTokenizer, bpe: BPETokenizer };
  return new kinds[fields.kind](fields);
}
