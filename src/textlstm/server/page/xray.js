// Neurons over the text: a strip of colours for each, and the text itself in the colours of one.

export class Xray {
  constructor(rows, choose) {
    this.rows = rows;
    this.choose = choose; // called with the values of a neuron per character, or null
  }

  show(seen) {
    const characters = Math.max(1, seen.chars);
    this.rows.replaceChildren(
      ...seen.neurons.map((neuron, row) => {
        const values = perCharacter(seen.values[row], seen.offsets, characters);
        const line = document.createElement("div");
        const button = document.createElement("button");
        line.className = "neuron";
        button.type = "button";
        button.textContent = `${seen.layer}·${neuron}`;
        button.setAttribute("aria-label", `Colour the text by neuron ${neuron} of layer ${seen.layer}`);
        button.setAttribute("aria-pressed", "false");
        button.addEventListener("click", () => this.#press(button, values));
        line.append(button, strip(values, neuron));
        return line;
      }),
    );
  }

  clear() {
    this.rows.replaceChildren();
  }

  #press(button, values) {
    const on = button.getAttribute("aria-pressed") !== "true";
    for (const other of this.rows.querySelectorAll("button")) other.setAttribute("aria-pressed", "false");
    button.setAttribute("aria-pressed", String(on));
    this.choose(on ? values : null);
  }
}

function perCharacter(values, offsets, characters) {
  const all = new Float32Array(characters);
  offsets.forEach((offset, i) => all.fill(values[i], offset, offsets[i + 1] ?? characters));
  return all;
}

function strip(values, neuron) {
  const canvas = document.createElement("canvas");
  canvas.width = values.length;
  canvas.height = 1;
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `Neuron ${neuron} over the text, from first to last character`);
  const style = getComputedStyle(document.documentElement);
  const [hot, cold] = ["--hot", "--cold"].map((name) => style.getPropertyValue(name).trim());
  const context = canvas.getContext("2d");
  values.forEach((value, x) => {
    context.fillStyle = `rgb(${value < 0 ? cold : hot} / ${Math.abs(value).toFixed(3)})`;
    context.fillRect(x, 0, 1, 1);
  });
  return canvas;
}
