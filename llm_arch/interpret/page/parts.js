
"use strict";
// What all parts of the page share. Texts become text nodes only, never markup.

/** An element with properties, and with children that are nodes or texts. */
function make(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("--")) made.style.setProperty(name, value);
    else if (name.includes("-") || name === "role") made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children);
  return made;
}

/** A number with its sign. */
const signed = (number, digits = 4) =>
  number === null ? "not a number" : (number < 0 ? "−" : "+") + Math.abs(number).toFixed(digits);

/** A small window beside what it tells of; on a phone it lies at the bottom. */
const tip = {
  box: document.getElementById("tip"),
  owner: null,
  show(owner, ...content) {
    this.hide();
    this.owner = owner;
    owner.setAttribute("aria-describedby", "tip");
    this.box.replaceChildren(...content);
    this.box.hidden = false;
    const [at, own] = [owner.getClientRects()[0] ?? owner.getBoundingClientRect(), this.box.getBoundingClientRect()];
    const below = at.bottom + own.height + 8 < innerHeight;
    this.box.style.left = `${Math.max(8, Math.min(at.left, innerWidth - own.width - 8))}px`;
    this.box.style.top = `${below ? at.bottom + 6 : Math.max(8, at.top - own.height - 6)}px`;
  },
  hide() {
    this.owner?.removeAttribute("aria-describedby");
    this.owner = null;
    this.box.hidden = true;
  },
};

/** Show a tip where the pointer is, the focus is, or a finger was, for those children that `content` knows. */
function tips(root, selector, content) {
  const show = (event) => {
    const owner = event.target.closest?.(selector);
    if (owner && root.contains(owner) && tip.owner !== owner) tip.show(owner, ...content(owner));
  };
  for (const kind of ["pointerover", "focusin", "click"]) root.addEventListener(kind, show);
  root.addEventListener("pointerout", (event) => {
    if (event.pointerType === "mouse" && tip.owner !== document.activeElement) tip.hide();
  });
  root.addEventListener("focusout", () => tip.hide());
}

/** One stop for the Tab key among many, and arrows between them; `columns` of them stand in a line. */
function arrows(root, selector, columns = 1) {
  const all = () => [...root.querySelectorAll(selector)];
  root.addEventListener("keydown", (event) => {
    const [own, at] = [all(), all().indexOf(event.target)];
    const line = columns === 1 ? own.length : columns;
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns, Home: -at, End: own.length }[event.key];
    if (at < 0 || step === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    own[Math.max(0, Math.min(own.length - 1, line > 1 && at + step < 0 ? at : at + step))].focus();
  });
  root.addEventListener("focusin", (event) => {
    if (!event.target.matches(selector)) return;
    for (const one of all()) one.tabIndex = one === event.target ? 0 : -1;
  });
  all().forEach((one, number) => { one.tabIndex = number ? -1 : 0; });
}

/** A part that is made when it is opened for the first time. */
function folded(title, fill) {
  const found = make("details", {}, make("summary", {}, title));
  found.addEventListener("toggle", () => { if (found.open) found.append(fill()); }, { once: true });
  return found;
}

/** A choice among names; none where there is one alone. */
function choice(label, names, change) {
  const made = make("select", { "aria-label": label }, ...names.map((name, i) => make("option", { value: i }, name)));
  made.addEventListener("change", () => change(Number(made.value)));
  return names.length > 1 ? [make("label", {}, label, made)] : [];
}
