// The tree of continuations. A node holds what one press of "Write" brought; the text is the path from the root.

export class Tree {
  constructor(prompt = "", state = null) {
    this.root = { parent: null, children: [], prompt, state, tokens: [] };
    this.current = this.root;
  }

  path(node = this.current) {
    const nodes = [];
    for (; node; node = node.parent) nodes.unshift(node);
    return nodes;
  }

  // The tokens of the path below the root, each with its node and place.
  tokens(node = this.current) {
    return this.path(node).flatMap((n) => n.tokens.map((token, place) => ({ ...token, node: n, place })));
  }

  text(node = this.current) {
    return this.root.prompt + this.tokens(node).map((token) => token.text).join("");
  }

  // A new child of a node, which becomes the place where the text goes on.
  grow(parent, tokens = []) {
    const node = { parent, children: [], tokens: [...tokens] };
    parent.children.push(node);
    this.current = node;
    return node;
  }

  // Beside a node: the same tokens up to a place, then another one.
  fork(node, place, token) {
    return this.grow(node.parent, [...node.tokens.slice(0, place), token]);
  }

  undo() {
    if (this.current.parent) this.current = this.current.parent;
  }

  drop(node) {
    node.parent.children = node.parent.children.filter((child) => child !== node);
    if (this.path().includes(node)) this.current = node.parent;
  }
}

// Shows the tree as nested lists of buttons.
export function showTree(list, tree, go) {
  const path = new Set(tree.path());
  const item = (node) => {
    const li = document.createElement("li");
    const button = document.createElement("button");
    const said = node.parent ? node.tokens.map((token) => token.text).join("") : node.prompt;
    const first = said.replace(/\s+/g, " ").trim().slice(0, 60);
    button.type = "button";
    button.textContent = first || (node.parent ? "…" : node.state ? "from a state" : "the beginning");
    button.className = path.has(node) ? "path" : "";
    if (node === tree.current) button.setAttribute("aria-current", "true");
    button.addEventListener("click", () => go(node));
    li.append(button);
    if (node.children.length === 1) return [li, ...item(node.children[0])]; // only forks go deeper
    return node.children.length ? [li, forks(node)] : [li];
  };
  const forks = (node) => {
    const li = document.createElement("li");
    for (const child of node.children) {
      const ul = document.createElement("ul");
      ul.append(...item(child));
      li.append(ul);
    }
    return li;
  };
  list.replaceChildren(...item(tree.root));
}
