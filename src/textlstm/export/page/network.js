// The network: reads a model file and computes one step at a time.
// Sizes: V ids, E embedding, H hidden, L layers. A state is { h, c }, for each layer an array of H numbers.

// What a model file holds: a safetensors file with int8 matrices, a float32 scale for each of their rows, and float32
// vectors. Returns { config, tokenizer, tensors: name -> { shape, values, scales } }.
function readModel(bytes) {
  const start = 8 + Number(new DataView(bytes.buffer, bytes.byteOffset).getBigUint64(0, true));
  const { __metadata__: metadata, ...entries } = JSON.parse(new TextDecoder().decode(bytes.subarray(8, start)));
  const array = (name) => {
    if (!(name in entries)) return null;
    const [from, to] = entries[name].data_offsets;
    const data = bytes.slice(start + from, start + to).buffer; // a copy, so that it is aligned
    return entries[name].dtype === "I8" ? new Int8Array(data) : new Float32Array(data);
  };
  const tensors = {};
  for (const [name, { shape }] of Object.entries(entries)) {
    if (!name.endsWith(".scale")) tensors[name] = { shape, values: array(name), scales: array(`${name}.scale`) };
  }
  return { config: JSON.parse(metadata.config), tokenizer: JSON.parse(metadata.tokenizer), tensors };
}

// One block of memory for the matrices and for the vectors that they are multiplied with.
class Memory {
  constructor(matrices, plain) {
    const widest = Math.max(...matrices.flatMap(({ shape }) => shape));
    const rows = ({ shape }) => roundUp(shape[0], BLOCK);
    const bytes = matrices.map((source) => rows(source) * (source.shape[1] + 4));
    const kernel = makeKernel(bytes.reduce((a, b) => a + b, 0) + 8 * roundUp(widest, BLOCK), plain);
    Object.assign(this, kernel);
    this.free = 0;
    this.x = this.take(Float32Array, widest);
    this.out = this.take(Float32Array, widest);
  }

  take(Type, count) {
    const array = new Type(this.buffer, this.free, count);
    this.free += roundUp(array.byteLength, 4 * BLOCK);
    return array;
  }
}

function roundUp(value, unit) {
  return Math.ceil(value / unit) * unit;
}

class Matrix {
  constructor({ shape: [rows, columns], values, scales }, memory) {
    this.rows = rows;
    this.columns = columns;
    this.memory = memory;
    this.padded = roundUp(rows, BLOCK);
    this.scales = memory.take(Float32Array, this.padded);
    this.scales.set(scales);
    this.values = memory.take(Int8Array, this.padded * columns);
    for (let row = 0; row < rows; row++) {
      const place = this.place(row);
      for (let column = 0; column < columns; column++) {
        this.values[place + BLOCK * column] = values[row * columns + column];
      }
    }
  }

  place(row) {
    return (row - (row % BLOCK)) * this.columns + (row % BLOCK);
  }

  row(index) {
    const place = this.place(index);
    return new Float32Array(this.columns).map((_, column) => this.values[place + BLOCK * column] * this.scales[index]);
  }

  // start + this x; without a start it is zero.
  product(x, start = null) {
    const { memory } = this;
    memory.x.set(x);
    if (start === null) memory.out.fill(0);
    else memory.out.set(start);
    memory.product(
      this.values.byteOffset, this.scales.byteOffset, memory.x.byteOffset, memory.out.byteOffset, this.columns,
      this.padded
    );
    return memory.out.slice(0, this.rows);
  }
}

const INPUTS_KEPT = 1 << 23; // numbers, 32 MB

class Network {
  // plain: whether to compute in plain JavaScript even where WebAssembly is at hand.
  constructor({ config, tensors }, plain = false) {
    const names = Object.keys(tensors).filter((name) => tensors[name].scales !== null);
    const memory = new Memory(names.map((name) => tensors[name]), plain);
    const matrices = Object.fromEntries(names.map((name) => [name, new Matrix(tensors[name], memory)]));
    const vector = (name) => tensors[name]?.values;
    this.config = config;
    this.kernel = memory.name;
    this.embedding = matrices["embedding.weight"];
    this.input = matrices["input.weight"];
    this.inputBias = vector("input.bias");
    this.layers = Array.from({ length: config.num_layers }, (_, layer) => ({
      ih: matrices[`lstm.${layer}.weight_ih`],
      hh: matrices[`lstm.${layer}.weight_hh`],
      bias: vector(`lstm.${layer}.bias`),
    }));
    this.projection = matrices["projection.weight"];
    this.head = config.tie_embeddings ? this.embedding : matrices["head.weight"];
    this.headBias = vector("head.bias");
    this.inputs = new Map(); // id -> W x + b of the first layer, which depends on the id alone
  }

  zeroState() {
    const zeros = () => this.layers.map(() => new Float32Array(this.config.hidden_size));
    return { h: zeros(), c: zeros() };
  }

  // Logits for the first token of a text and the state to go on from; a model without a boundary begins uniformly.
  begin() {
    const state = this.zeroState();
    if (!this.config.boundary) return { logits: new Float32Array(this.config.vocab_size), state };
    return this.step(this.config.vocab_size - 1, state);
  }

  // Reads one id; returns the logits of the next and the new state.
  step(id, { h, c }) {
    const H = this.config.hidden_size;
    const after = { h: [], c: [] };
    let x = null;
    this.layers.forEach((layer, number) => {
      const input = number === 0 ? this.firstInput(id) : layer.ih.product(x, layer.bias);
      const gates = layer.hh.product(h[number], input);
      const cells = new Float32Array(H);
      x = new Float32Array(H);
      for (let j = 0; j < H; j++) {
        const added = sigmoid(gates[j]) * Math.tanh(gates[2 * H + j]);
        cells[j] = sigmoid(gates[H + j]) * c[number][j] + added;
        x[j] = sigmoid(gates[3 * H + j]) * Math.tanh(cells[j]);
      }
      after.h.push(x);
      after.c.push(cells);
    });
    return { logits: this.logits(x), state: after };
  }

  firstInput(id) {
    let input = this.inputs.get(id);
    if (input === undefined) {
      let x = this.embedding.row(id);
      if (this.input) x = this.input.product(x, this.inputBias);
      input = this.layers[0].ih.product(x, this.layers[0].bias);
      if (this.inputs.size * input.length > INPUTS_KEPT) this.inputs.clear();
      this.inputs.set(id, input);
    }
    return input;
  }

  logits(x) {
    if (this.projection) x = this.projection.product(x);
    const scale = this.config.logit_scale;
    return this.head.product(x, this.headBias).map((value) => value * scale);
  }
}

function sigmoid(x) {
  return 1 / (1 + Math.exp(-x));
}
