// The playground: what the buttons do.

import { complete, get, post, useKey } from "./api.js";
import { Shelf } from "./shelf.js";
import { makeSliders, pace, setSettings, settings } from "./sliders.js";
import { TextView } from "./text.js";
import { Tree, showTree } from "./tree.js";
import { Xray } from "./xray.js";

const element = (id) => document.getElementById(id);
const alternatives = () => Math.min(8, chosen().meta.max_logprobs);
const chosen = () => models.find((model) => model.id === element("model").value);

let models = [];
let tree = new Tree();
let writing = null; // what stops the text that is being written
let editing = false; // the prompt, although there is text after it

const view = new TextView(element("text"), element("peek"), pick);
const xray = new Xray(element("xray-rows"), paintNeuron);
const shelf = new Shelf(here, begin, say);
makeSliders(element("sliders"), element("more-sliders"));

function edit() {
  if (writing) return;
  editing = true;
  show();
  fit();
  element("prompt").focus();
}

function say(message) {
  element("status").textContent = message;
}

function show() {
  view.show(tree.tokens());
  showTree(element("tree"), tree, go);
  const busy = writing !== null;
  element("write").hidden = busy;
  element("stop").hidden = !busy;
  element("again").disabled = element("undo").disabled = busy || !tree.current.parent;
  const inline = tree.current !== tree.root && !editing; // the text goes on in the line of the prompt
  element("prompt").hidden = inline;
  element("prompt-shown").hidden = !inline || !tree.root.prompt;
  element("prompt-shown").textContent = tree.root.prompt;
  document.body.classList.toggle("writing", busy);
  const state = tree.root.state;
  element("begun").hidden = state === null;
  element("begun").textContent = state === null ? "" : `Begins from ${describe(state)}.`;
}

const describe = (state) =>
  typeof state === "string"
    ? `the state “${state}”`
    : Object.entries(state).map(([name, weight]) => `${Math.round(100 * weight)} % “${name}”`).join(" and ");

function here() {
  const state = tree.root.state === null ? {} : { state: tree.root.state };
  return { model: element("model").value, prompt: tree.text(), ...state };
}

// --- writing

async function write(node = tree.grow(tree.current)) {
  if (writing) return;
  if (!element("keep-seed").checked || !element("seed").value) {
    element("seed").value = String(crypto.getRandomValues(new Uint32Array(1))[0] >>> 1);
  }
  node.asked = { ...here(), ...settings(), seed: Number(element("seed").value) };
  const kept = node.tokens.length;
  const control = (writing = new AbortController());
  view.close();
  say("");
  editing = false;
  if (document.activeElement.matches(TYPED_INTO)) element("text").focus(); // so that single keys work
  show();
  let reason = null;
  let speed = null;
  try {
    for await (const token of typed(tokens({ ...node.asked, logprobs: alternatives() }, control.signal), control.signal)) {
      if (token.reason) reason = token.reason;
      else if (token.speed) speed = Math.round(token.speed).toLocaleString("en");
      else node.tokens.push(token);
      view.show(tree.tokens());
    }
    const number = node.tokens.length - kept;
    const made = `${number} ${number === 1 ? "token" : "tokens"}, made at ${speed} a second`;
    say(`${made}; seed ${node.asked.seed}${reason === "stop" ? "; the text ended here" : ""}.`);
  } catch (error) {
    if (error.name !== "AbortError") fail(error);
    else say(`Stopped after ${node.tokens.length - kept} tokens.`);
  }
  writing = null;
  if (node.tokens.length === 0) tree.drop(node);
  show();
}

// The tokens of a completion; each takes the text from where it begins to where the next one does.
async function* tokens(body, signal) {
  let text = [];
  let begun = null;
  for await (const chunk of complete(body, signal)) {
    if (!chunk.choices.length) {
      yield { speed: chunk.timings.predicted_per_second }; // the model's, whatever the pace it is shown at
      continue;
    }
    const choice = chunk.choices[0];
    const { tokens: names, text_offset: offsets, token_logprobs, top_logprobs } = choice.logprobs;
    text = text.concat(Array.from(choice.text));
    for (const [i, offset] of offsets.entries()) {
      if (begun && offset > begun.offset) yield cut(begun, text, offset);
      if (!begun || offset > begun.offset) {
        const top = Object.entries(top_logprobs[i]).sort((a, b) => b[1] - a[1]);
        begun = { offset, name: names[i], logprob: token_logprobs[i], top };
      }
    }
    if (choice.finish_reason) {
      if (begun && begun.offset < text.length) yield cut(begun, text, text.length);
      yield { reason: choice.finish_reason };
    }
  }
}

const cut = (token, text, end) => ({ ...token, text: text.slice(token.offset, end).join("") });

// The same, at a typewriter's pace.
async function* typed(source, signal) {
  let due = performance.now();
  for await (const token of source) {
    const speed = pace();
    if (speed && token.text) {
      due = Math.max(due, performance.now() - 50) + (1000 * token.text.length) / speed;
      const wait = due - performance.now();
      if (wait > 4) await new Promise((done) => setTimeout(done, wait));
      signal.throwIfAborted();
    }
    yield token;
  }
}

function again() {
  if (writing || !tree.current.parent) return;
  if (!tree.current.children.length && element("keep-seed").checked) {
    element("seed").value = String(Number(element("seed").value) + 1); // the same seed would write the same
  }
  tree.current = tree.current.parent;
  write();
}

function undo() {
  if (writing) return;
  tree.undo();
  show();
  say("");
}

function pick(token, text) {
  if (writing) return;
  const [, logprob] = token.top.find(([name]) => name === text);
  const node = tree.fork(token.node, token.place, { ...token, node: undefined, text, name: text, logprob, picked: true });
  write(node);
}

function go(node) {
  if (writing) return;
  tree.current = node;
  show();
}

function begin(state) {
  if (writing) return;
  tree = new Tree("", state);
  element("prompt").value = "";
  show();
  say(`The next text begins from ${describe(state)}.`);
  element("prompt").focus();
}

function clear() {
  writing?.abort();
  tree = new Tree();
  element("prompt").value = "";
  xray.clear();
  show();
  say("");
  element("prompt").focus();
}

function fail(error) {
  if (error.status === 401) element("login").showModal();
  say(error.message);
}

// --- colours and neurons

function paintNeuron(values) {
  view.colour = values ? "neuron" : element("colour").value;
  if (values) {
    let at = Array.from(tree.root.prompt).length;
    view.neuron = tree.tokens().map((token) => {
      at += Array.from(token.text).length;
      return values[Math.min(at, values.length) - 1];
    });
  }
  element("legend").className = values ? "legend both" : "legend";
  element("legend").hidden = view.colour === "none";
  view.paint();
}

async function lookInside() {
  const chosen = element("xray-neurons").value.match(/\d+/g)?.map(Number);
  const layer = Number(element("xray-layer").value);
  const { model, prompt, state } = here();
  try {
    const seen = await post("v1/xray", { model, text: prompt, layer, ...(chosen ? { neurons: chosen } : {}), ...(state ? { state } : {}) });
    paintNeuron(null);
    xray.show(seen);
  } catch (error) {
    fail(error);
  }
}

// --- model, link, theme, keys

function showModel() {
  const { meta } = chosen();
  const layers = Array.from({ length: meta.num_layers }, (_, layer) => new Option(String(layer), String(layer)));
  element("xray-layer").replaceChildren(...layers);
  element("xray-layer").value = String(meta.num_layers - 1);
  const rows = [];
  const add = (name, value) => {
    if (value === null || value === undefined) return;
    if (typeof value === "object" && !Array.isArray(value)) {
      for (const [key, inner] of Object.entries(value)) add(`${name} ${key}`.trim(), inner);
      return;
    }
    const [dt, dd] = ["dt", "dd"].map((tag) => document.createElement(tag));
    dt.textContent = name.replaceAll("_", " ");
    dd.textContent = typeof value === "number" ? value.toLocaleString("en", { maximumFractionDigits: 4 }) : String(value);
    rows.push(dt, dd);
  };
  add("parameters", meta.n_params);
  add("vocabulary", meta.n_vocab);
  add("layers", `${meta.num_layers} of ${meta.hidden_size}`);
  add("", meta.card);
  element("card-rows").replaceChildren(...rows);
}

async function share() {
  const node = tree.current;
  const before = node.parent ? tree.text(node.parent) : tree.root.prompt;
  const asked = node.asked ?? { ...here(), ...settings(), seed: Number(element("seed").value) || 0 };
  const values = new URLSearchParams();
  for (const [name, value] of Object.entries({ ...asked, prompt: before })) {
    if (name === "state") continue; // states live on this server only
    for (const one of Array.isArray(value) ? value : [value]) values.append(name, String(one));
  }
  history.replaceState(null, "", `#${values}`);
  try {
    await navigator.clipboard.writeText(location.href);
    say("The link is copied; it writes this piece again.");
  } catch {
    say("The address of this page now writes this piece again.");
  }
}

function readLink() {
  const values = new URLSearchParams(location.hash.slice(1));
  if (!values.has("seed")) return false;
  setSettings(values);
  if (models.some((model) => model.id === values.get("model"))) element("model").value = values.get("model");
  element("seed").value = values.get("seed").replace(/\D/g, "");
  element("keep-seed").checked = true;
  tree = new Tree(values.get("prompt") ?? "");
  element("prompt").value = tree.root.prompt;
  return true;
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
}

const KEYS = {
  r: again,
  u: undo,
  x: lookInside,
  p: edit,
  "?": () => element("keys").showModal(),
  c: () => {
    element("colour").value = element("colour").value === "none" ? "surprise" : "none";
    paintNeuron(null);
  },
};

const TYPED_INTO = "input:not([type=checkbox], [type=range]), textarea, select, dialog";

document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    if (!writing) write();
  } else if (event.key === "Escape" && writing) {
    writing.abort();
  } else if (!event.target.closest(TYPED_INTO) && !event.ctrlKey && !event.metaKey && !event.altKey) {
    const act = KEYS[event.key.toLowerCase()];
    if (act) {
      event.preventDefault();
      act();
    }
  }
});

element("write").addEventListener("click", () => write());
element("stop").addEventListener("click", () => writing?.abort());
element("again").addEventListener("click", again);
element("undo").addEventListener("click", undo);
element("clear").addEventListener("click", clear);
element("seed").addEventListener("input", () => (element("keep-seed").checked = element("seed").value !== ""));
element("share").addEventListener("click", share);
element("colour").addEventListener("change", () => paintNeuron(null));
element("show-card").addEventListener("click", () => element("card").showModal());
element("show-keys").addEventListener("click", () => element("keys").showModal());
element("model").addEventListener("change", () => {
  showModel();
  xray.clear();
});
element("xray-form").addEventListener("submit", (event) => {
  event.preventDefault();
  lookInside();
});
element("theme").addEventListener("click", () => {
  const theme = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
  setTheme(theme);
  localStorage.setItem("textlstm-theme", theme);
});
element("prompt-shown").addEventListener("click", edit);
element("prompt").addEventListener("blur", () => {
  if (!editing) return;
  editing = false;
  show();
});
element("prompt").addEventListener("input", () => {
  // Another prompt is another text, unless nothing was written yet.
  if (tree.root.children.length) tree = new Tree("", tree.root.state);
  tree.root.prompt = element("prompt").value;
  fit();
  show();
});
element("login").addEventListener("close", () => {
  useKey(element("key").value);
  start();
});

// Where the browser cannot size a text field by its content.
function fit() {
  if (CSS.supports("field-sizing", "content")) return;
  const prompt = element("prompt");
  prompt.style.height = "auto";
  prompt.style.height = `${prompt.scrollHeight}px`;
}

async function start() {
  try {
    models = (await get("v1/models")).data;
    element("model").replaceChildren(...models.map((model) => new Option(model.id, model.id)));
    const linked = readLink();
    showModel();
    await shelf.refresh();
    fit();
    show();
    if (linked) write();
  } catch (error) {
    fail(error);
  }
}

setTheme(localStorage.getItem("textlstm-theme") ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light"));
show();
start();
