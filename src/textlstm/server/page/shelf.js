// The shelf of named states: save, begin from one or from a mixture, delete.

import { get, post, remove } from "./api.js";

const element = (id) => document.getElementById(id);

export class Shelf {
  // here() gives { model, prompt, state } of the text; begin(state) starts a text from a state; say(message) tells.
  constructor(here, begin, say) {
    this.begin = begin;
    this.say = say;
    element("save-form").addEventListener("submit", (event) => {
      event.preventDefault();
      const name = element("save-name").value.trim();
      this.#try(async () => {
        await post("v1/completions", { ...here(), max_tokens: 0, save_state: name });
        element("save-name").value = "";
        say(`Saved as “${name}”.`);
      });
    });
    element("mix-form").addEventListener("submit", (event) => {
      event.preventDefault();
      const [a, b, weight] = ["mix-a", "mix-b", "mix-weight"].map((id) => element(id).value);
      begin(a === b ? a : { [a]: 1 - Number(weight), [b]: Number(weight) });
    });
  }

  async refresh() {
    const names = (await get("v1/states")).data.map((state) => state.id);
    element("states").replaceChildren(...names.map((name) => this.#row(name)));
    element("mix-form").hidden = names.length < 2;
    for (const [id, place] of [["mix-a", 0], ["mix-b", 1]]) {
      const select = element(id);
      const before = select.value;
      select.replaceChildren(...names.map((name) => new Option(name, name)));
      select.value = names.includes(before) ? before : names[place];
    }
  }

  #row(name) {
    const li = document.createElement("li");
    const label = document.createElement("span");
    label.textContent = name;
    const button = (text, does, action) => {
      const made = document.createElement("button");
      made.type = "button";
      made.textContent = text;
      made.setAttribute("aria-label", `${does} ${name}`);
      made.addEventListener("click", action);
      return made;
    };
    li.append(
      label,
      button("Begin here", "Begin from", () => this.begin(name)),
      button("✕", "Delete", () => this.#try(() => remove(`v1/states/${encodeURIComponent(name)}`))),
    );
    return li;
  }

  async #try(action) {
    try {
      await action();
      await this.refresh();
    } catch (error) {
      this.say(error.message);
    }
  }
}
