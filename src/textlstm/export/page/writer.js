// Writes texts behind a port (a worker's own scope, or one end of a MessageChannel), some milliseconds at a time, so
// that a message to stop is heard. Messages in:  { kind: "load", model } once, with the model file in base64;
// { kind: "write", run, prompt, seed, settings }; { kind: "stop" }. Messages out: { kind: "ready", kernel };
// { kind: "pieces", run, pieces } with pieces { text, bits, tokens, prompt };
// { kind: "done", run, speed } in tokens per second; { kind: "failed", message }.

const SLICE = 12; // milliseconds

function fromBase64(text) {
  const bytes = new Uint8Array((text.length / 4) * 3 - (text.endsWith("==") ? 2 : text.endsWith("=") ? 1 : 0));
  for (let from = 0, to = 0; from < text.length; from += 1 << 16) {
    const part = atob(text.slice(from, from + (1 << 16)));
    for (let i = 0; i < part.length; i++) bytes[to++] = part.charCodeAt(i);
  }
  return bytes;
}

// The text of a prompt and its continuation, token by token. A token that ends within a character has no text yet; its
// bits count for the piece that completes the character.
function* writeText(network, tokenizer, { prompt, seed, settings }) {
  const random = new RandomStream(BigInt(seed));
  const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  const seen = new Set();
  const ids = tokenizer.encode(prompt);
  const total = ids.length + settings.max_tokens;
  let { logits, state } = network.begin();
  let bits = 0;
  let tokens = 0;
  for (let place = 0; place < total; place++) {
    const inPrompt = place < ids.length;
    const id = inPrompt ? ids[place] : draw(logits, tokenizer.size, settings, seen, random);
    bits += surprise(logits, id);
    tokens += 1;
    seen.add(id);
    const last = place + 1 === ids.length || place + 1 === total;
    const text = decoder.decode(tokenizer.bytes(id), { stream: !last });
    if (text !== "") {
      yield { text, bits, tokens, prompt: inPrompt };
      bits = tokens = 0;
    }
    if (place + 1 < total) ({ logits, state } = network.step(id, state));
  }
}

function serveWriter(port) {
  const channel = new MessageChannel(); // a pause without the 4 ms that timers take
  const pause = () =>
    new Promise((resolve) => {
      channel.port1.onmessage = resolve;
      channel.port2.postMessage(null);
    });
  let network = null;
  let tokenizer = null;
  let current = null;

  async function write(request) {
    const { run } = request;
    current = run;
    let pieces = [];
    let began = performance.now();
    let [tokens, milliseconds] = [0, 0];
    const send = () => {
      milliseconds += performance.now() - began;
      port.postMessage({ kind: "pieces", run, pieces });
      pieces = [];
    };
    for (const piece of writeText(network, tokenizer, request)) {
      pieces.push(piece);
      tokens += piece.tokens;
      if (performance.now() - began < SLICE) continue;
      send();
      await pause();
      if (current !== run) return;
      began = performance.now();
    }
    send();
    port.postMessage({ kind: "done", run, speed: (1000 * tokens) / milliseconds });
  }

  port.onmessage = ({ data }) => {
    try {
      if (data.kind === "load") {
        const model = readModel(fromBase64(data.model));
        network = new Network(model);
        tokenizer = makeTokenizer(model.tokenizer);
        port.postMessage({ kind: "ready", kernel: network.kernel });
      } else {
        current = null;
        if (data.kind === "write") write(data).catch(failed);
      }
    } catch (error) {
      failed(error);
    }
  };

  function failed(error) {
    port.postMessage({ kind: "failed", message: String(error) });
  }
}
