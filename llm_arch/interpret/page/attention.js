
// Where heads attend: a small map for each, layer by layer, and one of them large.

/** All maps of a sequence: for each layer, (heads × T × T) steps of a 255th of a head's largest. */
async function unpacked(sequence) {
  const packed = Uint8Array.from(atob(sequence.maps), (letter) => letter.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  const all = new Uint8Array(await new Response(stream).arrayBuffer());
  const size = sequence.tokens.length ** 2;
  let at = 0;
  return sequence.maxima.map((heads) => heads.map((most) => {
    const steps = all.subarray(at, (at += size));
    return { size: sequence.tokens.length, most, value: (i) => (steps[i] * most) / 255 };
  }));
}

/** The mean of a layer's heads. */
function mean_of(heads) {
  const { size } = heads[0];
  const values = new Float32Array(size * size);
  for (const head of heads) for (let i = 0; i < values.length; i++) values[i] += head.value(i) / heads.length;
  return { size, most: values.reduce((a, b) => Math.max(a, b), 0), value: (i) => values[i] };
}

const INSIDE = [140, 105, 225];
/** How opaque a value is: by its square root, since most of a map is small. */
const opaque = (value, most) => (most ? Math.sqrt(value / most) : 0);

/** A map in at most 48 × 48 points, each the largest of what it stands for. */
function small(map) {
  const points = Math.min(48, map.size);
  const canvas = make("canvas", { width: points, height: points });
  const pen = canvas.getContext("2d");
  const image = pen.createImageData(points, points);
  for (let i = 0; i < map.size ** 2; i++) {
    const row = Math.floor((Math.floor(i / map.size) * points) / map.size);
    const at = 4 * (row * points + Math.floor(((i % map.size) * points) / map.size));
    image.data.set(INSIDE, at);
    image.data[at + 3] = Math.max(image.data[at + 3], 255 * opaque(map.value(i), map.most));
  }
  pen.putImageData(image, 0, 0);
  return canvas;
}

/** The grid of layers × heads; `choose(map, name)` is told what was chosen. */
function grid_of_heads(layers, importance, choose) {
  const most_heads = Math.max(...(layers ?? importance).map((heads) => heads.length));
  const largest = Math.max(0, ...(importance ?? []).flat());
  const columns = (layers ? 1 : 0) + most_heads;
  const grid = make("div", { className: "heads", role: "group", "aria-label": "layers and heads" });
  grid.style.gridTemplateColumns = `max-content repeat(${columns}, max-content)`;
  const button = (name, map, weight) => {
    const told = weight === undefined ? name : `${name}, importance ${weight?.toPrecision(3)}`;
    const parts = map ? [small(map)] : [make("span", { className: "square", "--share": largest ? weight / largest : 0 })];
    if (map && weight !== undefined) {
      const bar = make("i");
      bar.style.width = `${largest ? (100 * weight) / largest : 0}%`;
      parts.push(make("span", { className: "weight" }, bar));
    }
    const made = make("button", { type: "button", title: told, "aria-label": told, "aria-pressed": false }, ...parts);
    made.addEventListener("click", () => {
      for (const one of grid.querySelectorAll("button")) one.setAttribute("aria-pressed", one === made);
      choose(map, told);
    });
    return made;
  };
  grid.append(make("span", { className: "name" }), ...(layers ? [make("span", { className: "name" }, "mean")] : []),
    ...Array.from({ length: most_heads }, (_, head) => make("span", { className: "name" }, String(head + 1))));
  (layers ?? importance).forEach((heads, layer) => {
    const name = `layer ${layer + 1}`;
    grid.append(make("span", { className: "name" }, heads.length ? name : `${name}: no head left`));
    if (layers && heads.length) grid.append(button(`${name}, mean of its heads`, mean_of(heads)));
    else if (layers) grid.append(make("span"));
    for (let head = 0; head < most_heads; head++) {
      if (head >= heads.length) grid.append(make("span"));
      else grid.append(button(`${name}, head ${head + 1}`, layers?.[layer][head], importance?.[layer][head]));
    }
  });
  arrows(grid, "button", columns);
  return grid;
}

/** A large map with the tokens along two sides; pointing at a cell, or going there by arrows, tells its number. */
function large_map(sequence) {
  const canvas = make("canvas", { className: "map", tabIndex: 0, role: "img", "aria-label": "attention from each token, down, to each, across" });
  const told = make("p", { className: "told", "aria-live": "polite" });
  let map, name, shown, at, cell, side, most;
  const value = (row, column) => map.value(shown[row] * map.size + shown[column]);
  const draw = () => {
    const count = shown.length;
    const pen = canvas.getContext("2d");
    const font = "11px system-ui, sans-serif";
    pen.font = font;
    const tokens = shown.map((i) => sequence.tokens[i]);
    side = Math.ceil(Math.min(110, Math.max(...tokens.map((token) => pen.measureText(token).width)) + 10));
    const room = Math.max(200, canvas.parentElement.clientWidth) - side - 2;
    cell = Math.max(3, Math.min(26, Math.floor(room / count)));
    const [length, ratio] = [side + cell * count + 1, devicePixelRatio || 1];
    canvas.width = canvas.height = Math.round(length * ratio);
    canvas.style.width = canvas.style.height = `${length}px`;
    pen.scale(ratio, ratio);
    const ink = getComputedStyle(canvas).color;
    most = 0;
    for (let r = 0; r < count; r++) for (let c = 0; c < count; c++) most = Math.max(most, value(r, c));
    for (let r = 0; r < count; r++) for (let c = 0; c < count; c++) {
      pen.fillStyle = `rgb(${INSIDE.join(" ")} / ${opaque(value(r, c), most)})`;
      pen.fillRect(side + c * cell, side + r * cell, cell, cell);
    }
    pen.font = font;
    pen.fillStyle = ink;
    pen.textBaseline = "middle";
    const every = Math.ceil(12 / cell);
    for (let i = 0; i < count; i += every) {
      pen.textAlign = "right";
      pen.fillText(fitted(pen, tokens[i], side - 8), side - 5, side + (i + 0.5) * cell);
      pen.save();
      pen.translate(side + (i + 0.5) * cell, side - 5);
      pen.rotate(-Math.PI / 2);
      pen.textAlign = "left";
      pen.fillText(fitted(pen, tokens[i], side - 8), 0, 0);
      pen.restore();
    }
    pen.strokeStyle = ink;
    pen.globalAlpha = 0.35;
    pen.strokeRect(side - 0.5, side - 0.5, cell * count + 1, cell * count + 1);
    if (at) {
      pen.globalAlpha = 1;
      pen.lineWidth = 2;
      pen.strokeRect(side + at[1] * cell, side + at[0] * cell, cell, cell);
    }
  };
  const tell = (row, column) => {
    const last = shown.length - 1;
    at = [Math.max(0, Math.min(last, row)), Math.max(0, Math.min(last, column))];
    const [from, to] = at.map((i) => sequence.tokens[shown[i]]);
    told.textContent = `${name}: “${from}” looks at “${to}” with ${value(...at).toFixed(3)}`;
    draw();
  };
  const point = (event) => {
    const box = canvas.getBoundingClientRect();
    const [column, row] = [event.clientX - box.left, event.clientY - box.top].map((d) => Math.floor((d - side) / cell));
    if (row >= 0 && column >= 0 && row < shown.length && column < shown.length) tell(row, column);
  };
  canvas.addEventListener("pointermove", point);
  canvas.addEventListener("click", point);
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] }[event.key];
    if (!step) return;
    event.preventDefault();
    tell((at?.[0] ?? 0) + step[0], (at?.[1] ?? 0) + step[1]);
  });
  const redraw = () => { if (map && canvas.isConnected) draw(); };
  addEventListener("resize", redraw);
  document.addEventListener("theme", redraw);
  return {
    parts: [make("div", { className: "wide" }, canvas), told],
    show(chosen, called, special) {
      [map, name, at] = [chosen, called, undefined];
      shown = sequence.tokens.map((_, i) => i).filter((i) => special || !sequence.special[i]);
      if (!shown.length) shown = sequence.tokens.map((_, i) => i);
      draw();
      told.textContent = `${name}; the largest is ${most.toFixed(3)}. Point at a cell for its number; colours are by its square root.`;
    },
  };
}
const fitted = (pen, text, width) => {
  if (pen.measureText(text).width <= width) return text;
  let letters = [...text];
  while (letters.length > 1 && pen.measureText(letters.join("") + "…").width > width) letters = letters.slice(0, -1);
  return letters.join("") + "…";
};

/** Attention of a row, or the importance of heads alone. */
function attention_of({ sequences, importance, target }) {
  const place = make("div");
  const of = target === null || !importance ? [] : [make("p", { className: "hint" }, `Bars: importance of each head for ${target}.`)];
  const open = async (number) => {
    const sequence = sequences[number];
    if (!sequence.maps) {
      const told = make("p", { className: "told", "aria-live": "polite" });
      place.replaceChildren(make("div", { className: "wide" }, grid_of_heads(null, importance, (_, name) => { told.textContent = name; })), told);
      return;
    }
    const layers = await unpacked(sequence);
    const map = large_map(sequence);
    const special = make("input", { type: "checkbox", checked: true });
    let chosen;
    const show = () => map.show(...chosen, special.checked);
    special.addEventListener("change", show);
    const grid = grid_of_heads(layers, importance, (...own) => { chosen = own; show(); });
    place.replaceChildren(make("div", { className: "wide" }, grid),
      make("div", { className: "controls" }, make("label", {}, special, "special tokens")), ...map.parts);
    grid.querySelector("button")?.click();
  };
  open(0);
  return make("div", {}, ...of, make("div", { className: "controls" }, ...choice("sequence", sequences.map((one) => one.name), open)), place);
}
