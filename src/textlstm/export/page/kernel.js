// The one hot loop, twice over the same memory: in WebAssembly with SIMD, and in plain JavaScript for browsers that do
// not have it or do not allow it.
//
//   product(matrix, scales, x, out, columns, rows):  out[r] += scales[r] * sum over c of matrix[r][c] * x[c]
//
// The first four are addresses. The matrix is int8, sixteen rows at a time with their columns interleaved, so that it
// is read in order; `rows` is a multiple of 16. The other three are float32.

const BLOCK = 16;

function plainProduct(buffer) {
  const int8 = new Int8Array(buffer);
  const float32 = new Float32Array(buffer);
  return (matrix, scales, x, out, columns, rows) => {
    [scales, x, out] = [scales / 4, x / 4, out / 4];
    for (let row = 0; row < rows; row += 8) {
      let s0 = 0, s1 = 0, s2 = 0, s3 = 0, s4 = 0, s5 = 0, s6 = 0, s7 = 0;
      let place = matrix + (row - (row % BLOCK)) * columns + (row % BLOCK);
      for (let column = 0; column < columns; column++, place += BLOCK) {
        const value = float32[x + column];
        s0 += int8[place] * value;
        s1 += int8[place + 1] * value;
        s2 += int8[place + 2] * value;
        s3 += int8[place + 3] * value;
        s4 += int8[place + 4] * value;
        s5 += int8[place + 5] * value;
        s6 += int8[place + 6] * value;
        s7 += int8[place + 7] * value;
      }
      const sums = [s0, s1, s2, s3, s4, s5, s6, s7];
      for (let i = 0; i < 8; i++) float32[out + row + i] += float32[scales + row + i] * sums[i];
    }
  };
}

// The same as a WebAssembly module over an imported memory, written out in its binary form.
function simdProduct(memory) {
  const [MATRIX, SCALES, X, OUT, COLUMNS, ROWS, X_PLACE, X_END, OUT_END, SUM, VALUE, EIGHT] =
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 14]; // SUM is four registers, 9 to 12
  const get = (local) => [0x20, local];
  const set = (local) => [0x21, local];
  const constant = (value) => [0x41, value]; // below 64
  const add = [0x6a];
  const advance = (local, bytes) => [get(local), constant(bytes), add, set(local)];
  const end = (base, count) => [get(base), get(count), constant(2), 0x74, add]; // base + 4 * count
  const repeatWhileBelow = (place, limit, body) => [0x03, 0x40, body, get(place), get(limit), 0x49, 0x0d, 0, 0x0b];
  const simd = (opcode, ...rest) => [0xfd, opcode < 128 ? opcode : [opcode, 1], rest];
  const load = (local, offset) => [get(local), simd(0, 2, offset)];
  const loadEight = (local, offset) => [get(local), simd(1, 0, offset)]; // int8 to int16
  const loadSplat = (local) => [get(local), simd(9, 2, 0)];
  const store = (offset) => simd(11, 2, offset);
  const [zero, plus, times] = [simd(12, new Array(16).fill(0)), simd(228), simd(230)];
  const [low, high, toFloat] = [simd(167), simd(168), simd(250)]; // int16 to int32; int32 to float32
  const quarters = [0, 1, 2, 3];

  const body = [
    end(OUT, ROWS), set(OUT_END), end(X, COLUMNS), set(X_END),
    repeatWhileBelow(OUT, OUT_END, [
      quarters.map((i) => [zero, set(SUM + i)]),
      get(X), set(X_PLACE),
      repeatWhileBelow(X_PLACE, X_END, [
        loadSplat(X_PLACE), set(VALUE),
        quarters.map((i) => [
          i % 2 === 0 ? [loadEight(MATRIX, 4 * i), set(EIGHT)] : [],
          get(SUM + i), get(EIGHT), i % 2 === 0 ? low : high, toFloat, get(VALUE), times, plus, set(SUM + i),
        ]),
        advance(MATRIX, BLOCK), advance(X_PLACE, 4),
      ]),
      quarters.map((i) => [
        get(OUT), load(OUT, 16 * i), get(SUM + i), load(SCALES, 16 * i), times, plus, store(16 * i),
      ]),
      get(OUT), 0x41, 64 | 0x80, 0, add, set(OUT), // 64 takes two bytes in this encoding
      get(SCALES), 0x41, 64 | 0x80, 0, add, set(SCALES),
    ]),
    0x0b,
  ];
  const I32 = 0x7f, V128 = 0x7b;
  const sized = (content) => {
    const bytes = content.flat(Infinity);
    return [(bytes.length & 127) | 128, bytes.length >> 7, bytes];
  };
  const code = sized([2, 3, I32, 6, V128, body]); // with its own locals: three addresses, six registers
  const name = [1, "p".charCodeAt(0)];
  const module = [
    [0, 0x61, 0x73, 0x6d, 1, 0, 0, 0], // "\0asm", version 1
    [1, sized([1, 0x60, 6, new Array(6).fill(I32), 0])], // types: six addresses and numbers, no result
    [2, sized([1, name, name, 2, 0, 1])], // imports: p.p, a memory of at least one page
    [3, sized([1, 0])], // functions: one, of type 0
    [7, sized([1, name, 0, 0])], // exports: function 0 as p
    [10, sized([1, code])],
  ];
  const bytes = Uint8Array.from(module.flat(Infinity));
  return new WebAssembly.Instance(new WebAssembly.Module(bytes), { p: { p: memory } }).exports.p;
}

// Memory of a size in bytes, and the product over it.
function makeKernel(size, plain = false) {
  try {
    if (plain) throw new Error("plain JavaScript was asked for");
    const memory = new WebAssembly.Memory({ initial: Math.ceil(size / 65536) });
    return { buffer: memory.buffer, product: simdProduct(memory), name: "WebAssembly" };
  } catch {
    const buffer = new ArrayBuffer(size);
    return { buffer, product: plainProduct(buffer), name: "JavaScript" };
  }
}
