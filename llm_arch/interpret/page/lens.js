
// What each layer would say: the logit lens.

function lens_of({ lens, sequences }) {
  const { vocabulary, through, positions } = lens;
  const used = sequences.map((_, number) => number).filter((number) => positions.some((one) => one.sequence === number));
  const place = make("div", { className: "wide" });
  const cell = (layer, name) => {
    const [[token, probability]] = layer.tokens;
    const made = make("span", { role: "button", "--share": probability ?? 0 }, vocabulary[token]);
    told.set(made, { layer, name });
    return make("td", {}, made);
  };
  const told = new WeakMap();
  const content = (owner) => {
    const { layer, name } = told.get(owner);
    return [make("b", {}, name), make("table", {}, ...layer.tokens.map(([token, probability]) =>
      make("tr", {}, make("td", {}, vocabulary[token]), make("td", { className: "number" }, probability?.toFixed(3))))),
    `${layer.divergence?.toFixed(3)} nats from the last layer`];
  };
  const open = (number) => {
    const some = positions.filter((one) => one.sequence === used[number]);
    const tokens = some.map((one) => sequences[one.sequence].tokens[one.place]);
    const head = make("tr", {}, make("th", {}, "after"), ...tokens.map((token) => make("th", { scope: "col" }, token)));
    const lines = some[0].layers.map((_, layer) => {
      const name = layer ? `layer ${layer}` : "embeddings";
      const cells = some.map((one, i) => cell(one.layers[layer], `${name}, at “${tokens[i]}”`));
      return make("tr", {}, make("th", { scope: "row" }, name), ...cells);
    });
    place.replaceChildren(make("table", { className: "lens" }, make("thead", {}, head), make("tbody", {}, ...lines)));
    arrows(place, "td span", some.length);
  };
  if (used.length) open(0);
  tips(place, "td span", content);
  return make("div", {}, make("p", { className: "hint" }, `The most probable token after each layer, made by ${through}.`),
    make("div", { className: "controls" }, ...choice("sequence", used.map((i) => sequences[i].name), open)), place);
}
