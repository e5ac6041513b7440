// The sampling settings, under the names of the API's fields.

const FIELDS = [
  // name, least, most, step, start, whether it is among the first
  ["temperature", 0, 2, 0.05, 0.8, true],
  ["top_p", 0, 1, 0.01, 1, true],
  ["top_k", 0, 100, 1, 0, true],
  ["max_tokens", 1, 1000, 1, 160, true],
  ["min_p", 0, 1, 0.01, 0, false],
  ["typical_p", 0.05, 1, 0.01, 1, false],
  ["repetition_penalty", 0.5, 2, 0.05, 1, false],
  ["frequency_penalty", -2, 2, 0.05, 0, false],
  ["presence_penalty", -2, 2, 0.05, 0, false],
  ["typewriter", 0, 400, 10, 120, false], // characters per second, 0 at once; the page's own
];

export function makeSliders(first, more) {
  for (const [name, min, max, step, value, early] of FIELDS) {
    const label = document.createElement("label");
    const code = document.createElement("code");
    const output = document.createElement("output");
    const input = document.createElement("input");
    label.className = "field";
    code.textContent = name;
    Object.assign(input, { type: "range", id: name, min, max, step });
    input.value = value;
    input.setAttribute("aria-label", name);
    output.textContent = input.value;
    input.addEventListener("input", () => (output.textContent = input.value));
    label.append(code, output, input);
    (early ? first : more).append(label);
  }
}

const element = (name) => document.getElementById(name);

export function settings() {
  const sampling = FIELDS.filter(([name]) => name !== "typewriter").map(([name]) => [name, Number(element(name).value)]);
  const stop = element("stop-strings").value.split("|").map((s) => s.replaceAll("\\n", "\n")).filter(Boolean);
  return {
    ...Object.fromEntries(sampling),
    ...(stop.length ? { stop } : {}),
    ...(element("guided_regex").value ? { guided_regex: element("guided_regex").value } : {}),
    ...(element("ignore_eos").checked ? { ignore_eos: true } : {}),
  };
}

export function setSettings(values) {
  for (const [name] of FIELDS) {
    if (!values.has(name) || !Number.isFinite(Number(values.get(name)))) continue;
    element(name).value = values.get(name);
    element(name).dispatchEvent(new Event("input"));
  }
  if (values.has("stop")) element("stop-strings").value = values.getAll("stop").join("|").replaceAll("\n", "\\n");
  element("guided_regex").value = values.get("guided_regex") ?? "";
  element("ignore_eos").checked = values.get("ignore_eos") === "true";
}

export const pace = () => (matchMedia("(prefers-reduced-motion: reduce)").matches ? 0 : Number(element("typewriter").value));
