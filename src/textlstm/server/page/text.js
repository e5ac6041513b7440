// The written text: a span for each token, coloured, and the alternatives that open beside it.

const MOST_BITS = 12; // surprise at which the colour is full

export class TextView {
  constructor(area, peek, pick) {
    this.area = area;
    this.peek = peek;
    this.pick = pick; // called with a token and the alternative that was chosen
    this.colour = "surprise";
    this.neuron = null; // values per token, where the colour shows a neuron
    this.shown = [];
    area.addEventListener("pointerover", (event) => this.#hover(event));
    area.addEventListener("pointerleave", (event) => this.#leave(event));
    area.addEventListener("click", (event) => this.#click(event));
    area.addEventListener("keydown", (event) => this.#move(event));
    area.addEventListener("focusin", (event) => this.#focus(event));
    peek.addEventListener("pointerenter", () => clearTimeout(this.leaving));
    peek.addEventListener("pointerleave", (event) => this.#leave(event));
    peek.addEventListener("keydown", (event) => this.#choose(event));
    document.addEventListener("pointerdown", (event) => {
      if (!peek.contains(event.target) && !area.contains(event.target)) this.close();
    });
  }

  // Shows tokens; what is on the page already stays.
  show(tokens) {
    let same = 0;
    while (same < tokens.length && same < this.shown.length && this.#equal(tokens[same], this.shown[same])) same++;
    while (this.area.childNodes.length > same) this.area.lastChild.remove();
    for (const token of tokens.slice(same)) this.area.append(this.#span(token));
    this.shown = tokens;
    if (this.area.firstChild && !this.area.querySelector('[tabindex="0"]')) this.area.firstChild.tabIndex = 0;
    if (this.colour === "neuron") this.paint();
  }

  paint() {
    [...this.area.children].forEach((span, i) => this.#paint(span, this.shown[i], i));
  }

  close(refocus = false) {
    this.peek.hidden = true;
    this.opened?.classList.remove("open");
    const span = this.opened;
    this.opened = null;
    this.quiet = true; // focus that comes back opens nothing
    if (refocus) span?.focus();
    this.quiet = false;
  }

  #equal(a, b) {
    return a.node === b.node && a.place === b.place && a.text === b.text;
  }

  #span(token) {
    const span = document.createElement("span");
    span.className = token.picked ? "token picked" : "token";
    span.textContent = token.text;
    span.tabIndex = -1;
    span.setAttribute("role", "button");
    if (token.top?.length) span.setAttribute("aria-haspopup", "dialog");
    this.#paint(span, token, this.area.children.length);
    return span;
  }

  #paint(span, token, place) {
    let heat = 0;
    let tone = "var(--hot)";
    if (this.colour === "surprise" && token.logprob != null) heat = Math.min(1, bits(token) / MOST_BITS) * 0.6;
    if (this.colour === "neuron" && this.neuron) {
      const value = this.neuron[place] ?? 0;
      heat = Math.abs(value) * 0.62;
      tone = value < 0 ? "var(--cold)" : "var(--hot)";
    }
    span.style.setProperty("--heat", heat.toFixed(3));
    span.style.setProperty("--tone", tone);
  }

  #token(span) {
    return this.shown[[...this.area.children].indexOf(span)];
  }

  #hover(event) {
    if (event.pointerType !== "mouse" || !event.target.classList.contains("token")) return;
    clearTimeout(this.leaving);
    clearTimeout(this.waiting);
    this.waiting = setTimeout(() => this.#open(event.target), 140);
  }

  #leave(event) {
    if (event.pointerType !== "mouse") return; // a finger that is lifted leaves too
    clearTimeout(this.waiting);
    this.leaving = setTimeout(() => this.close(), 260);
  }

  #click(event) {
    if (event.target.classList.contains("token")) this.#open(event.target);
  }

  #focus(event) {
    if (!event.target.classList.contains("token")) return;
    for (const span of this.area.querySelectorAll('[tabindex="0"]')) span.tabIndex = -1;
    event.target.tabIndex = 0;
    if (!this.quiet && event.target.matches(":focus-visible")) this.#open(event.target);
  }

  #move(event) {
    const span = event.target;
    const to = { ArrowRight: span.nextElementSibling, ArrowLeft: span.previousElementSibling,
      Home: this.area.firstElementChild, End: this.area.lastElementChild }[event.key];
    if (to) {
      event.preventDefault();
      to.focus();
    } else if (event.key === "Enter" || event.key === " " || event.key === "ArrowDown") {
      event.preventDefault();
      this.#open(span);
      this.peek.querySelector("button")?.focus();
    } else if (event.key === "Escape" && !this.peek.hidden) {
      event.stopPropagation();
      this.close();
    }
  }

  #choose(event) {
    const at = document.activeElement;
    const to = { ArrowDown: at.nextElementSibling, ArrowUp: at.previousElementSibling }[event.key];
    if (to?.tagName === "BUTTON") {
      event.preventDefault();
      to.focus();
    } else if (event.key === "Escape") {
      event.stopPropagation();
      this.close(true);
    }
  }

  #open(span) {
    const token = this.#token(span);
    if (!token?.top?.length) return;
    this.close();
    this.opened = span;
    span.classList.add("open");
    const note = document.createElement("p");
    note.textContent = `${bits(token).toFixed(1)} bits of surprise · pick another to go on from there`;
    const buttons = token.top.map(([text, logprob]) => {
      const share = Math.exp(logprob);
      const button = document.createElement("button");
      const name = document.createElement("code");
      const value = document.createElement("span");
      button.type = "button";
      name.textContent = visible(text);
      value.textContent = share >= 0.001 ? `${(100 * share).toFixed(1)} %` : "< 0.1 %";
      button.style.setProperty("--share", `${(100 * share).toFixed(1)}%`);
      button.disabled = text === "<|endoftext|>" || text.startsWith("bytes:\\x"); // these cannot be typed
      if (text === token.name) button.setAttribute("aria-current", "true");
      button.append(name, value);
      button.addEventListener("click", () => {
        this.close();
        this.pick(token, text);
      });
      return button;
    });
    this.peek.replaceChildren(note, ...buttons);
    this.peek.hidden = false;
    const at = span.getClientRects()[0];
    const { offsetWidth: width, offsetHeight: height } = this.peek;
    const left = Math.min(Math.max(8, at.left), document.documentElement.clientWidth - width - 8);
    const below = at.bottom + height + 12 < window.innerHeight || at.top < height + 12;
    this.peek.style.left = `${left + window.scrollX}px`;
    this.peek.style.top = `${(below ? at.bottom + 7 : at.top - height - 7) + window.scrollY}px`;
  }
}

export const bits = (token) => -token.logprob / Math.LN2;

// Spaces and line ends made visible.
const visible = (text) => text.replaceAll(" ", "␣").replaceAll("\n", "⏎").replaceAll("\t", "⇥");
