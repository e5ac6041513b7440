// The page: what it shows and how it is used. It knows a model only as a port that writes (see writer.js).

const PACE = 90; // characters per second of the typewriter
const MOST_BITS = 12; // tokens as surprising as this have the full colour
const MOST_COLOR = 60; // per cent

function startApp(port, saveModel) {
  const find = (id) => document.getElementById(id);
  const [form, text, status, writeButton, anotherButton] =
    ["form", "text", "status", "write", "another"].map(find);
  const fields = Array.from(form.querySelectorAll("[name]"));
  const sliders = fields.filter((field) => field.type === "range");
  const typewriter = find("typewriter");
  let run = 0;
  let waiting = []; // pieces that came and are not shown yet
  let arrived = true; // whether all pieces came
  let totals = null;
  let address = null; // what this page wrote into the address

  // Settings and the address ----------------------------------------------------------------------------------------

  const newSeed = () => (find("seed").value = String(crypto.getRandomValues(new Uint32Array(1))[0] >>> 1));

  function showValues() {
    for (const slider of sliders) slider.previousElementSibling.value = slider.value;
  }

  // Returns whether the address names a text, that is a seed.
  function readAddress() {
    const values = new URLSearchParams(location.hash.slice(1));
    for (const field of fields) if (values.has(field.name)) field.value = values.get(field.name);
    showValues();
    if (find("seed").validity.valid) return values.has("seed");
    newSeed();
    return false;
  }

  function writeAddress() {
    address = "#" + new URLSearchParams(fields.map((field) => [field.name, field.value]));
    location.hash = address;
  }

  // Writing ---------------------------------------------------------------------------------------------------------

  function write() {
    if (writeButton.disabled || !form.reportValidity()) return;
    writeAddress();
    run += 1;
    [waiting, arrived, totals] = [[], false, { tokens: 0, milliseconds: 0, bits: 0, characters: 0 }];
    text.replaceChildren();
    busy(true);
    status.textContent = "Writing …";
    port.postMessage({
      kind: "write",
      run,
      prompt: find("prompt").value,
      seed: find("seed").value,
      settings: Object.fromEntries(sliders.map((slider) => [slider.name, Number(slider.value)])),
    });
    let last = performance.now();
    let due = 0;
    const own = run;
    requestAnimationFrame(function tick(now) {
      if (own !== run || arrived === null) return;
      due = typewriter.checked ? due + (Math.max(0, now - last) / 1000) * PACE : Infinity;
      last = now;
      due = show(due);
      if (arrived && waiting.length === 0) finish("");
      else requestAnimationFrame(tick);
    });
  }

  // Shows pieces that have `due` characters together; returns what is left of them.
  function show(due) {
    const following = typewriter.checked && innerHeight + scrollY > document.documentElement.scrollHeight - 60;
    const pieces = document.createDocumentFragment();
    while (waiting.length > 0 && (waiting[0].prompt || due >= 1)) {
      const piece = waiting.shift();
      const span = document.createElement("span");
      span.textContent = piece.text;
      span.title = `${piece.bits.toFixed(1)} bits`;
      span.style.setProperty("--surprise", Math.min(1, piece.bits / MOST_BITS) * MOST_COLOR);
      pieces.append(span);
      if (piece.prompt) {
        span.className = "prompt";
        continue;
      }
      due -= piece.text.length;
      totals.bits += piece.bits;
      totals.characters += Array.from(piece.text).length;
      totals.tokens += piece.tokens;
    }
    text.append(pieces);
    if (following) scrollTo({ top: document.documentElement.scrollHeight });
    return waiting.length > 0 ? due : Math.min(due, 1);
  }

  function stop() {
    if (!text.classList.contains("writing")) return;
    port.postMessage({ kind: "stop" });
    waiting = [];
    finish("Stopped. ");
  }

  function finish(how) {
    arrived = null;
    busy(false);
    const { tokens, characters, bits, speed } = totals;
    const pace = speed ? ` at ${Math.round(speed).toLocaleString("en")} a second` : "";
    const cost = characters > 0 ? `, ${(bits / characters).toFixed(2)} bits per character` : "";
    status.textContent = `${how}${tokens} tokens${pace}${cost}.`;
  }

  function busy(is) {
    text.classList.toggle("writing", is);
    text.setAttribute("aria-busy", is);
    writeButton.textContent = is ? "Stop" : "Write";
  }

  function another() {
    newSeed();
    write();
  }

  port.onmessage = ({ data }) => {
    if (data.kind === "ready") {
      writeButton.disabled = anotherButton.disabled = false;
      document.documentElement.dataset.kernel = data.kernel;
      status.textContent = "Ready.";
      if (readAddress()) write();
    } else if (data.kind === "failed") {
      status.textContent = `This does not work here: ${data.message}`;
      busy(false);
    } else if (data.run === run && arrived === false) {
      if (data.kind === "done") [arrived, totals.speed] = [true, data.speed];
      else waiting.push(...data.pieces);
    }
  };

  // What is pressed -------------------------------------------------------------------------------------------------

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (text.classList.contains("writing")) stop();
    else write();
  });
  anotherButton.addEventListener("click", another);
  form.addEventListener("input", showValues);
  addEventListener("keydown", (event) => {
    if (event.key === "Escape") stop();
    if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
    event.preventDefault();
    if (event.shiftKey) another();
    else write();
  });
  addEventListener("hashchange", () => {
    if (location.hash !== address && readAddress()) write();
  });
  find("colored").addEventListener("change", (event) => {
    text.classList.toggle("colored", event.target.checked);
    find("legend").hidden = !event.target.checked;
  });
  const copy = (what, value) => {
    const said = (words) => (status.textContent = words);
    const copied = navigator.clipboard?.writeText(value()) ?? Promise.reject();
    copied.then(() => said(`The ${what} is copied.`), () => said(`This browser does not let a page copy the ${what}.`));
  };
  find("copy-text").addEventListener("click", () => copy("text", () => text.textContent));
  find("copy-link").addEventListener("click", () => copy("link", () => location.href));
  find("save-model").addEventListener("click", saveModel);

  find("settings").open = matchMedia("(min-width: 56.01rem)").matches;
  typewriter.checked = !matchMedia("(prefers-reduced-motion: reduce)").matches;
  newSeed();
  readAddress();
}
