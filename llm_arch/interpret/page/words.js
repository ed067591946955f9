
// Texts as coloured words, and their table.

const TONE = (score) => `var(--${score < 0 ? "against" : "for"})`;
const inside_of = new WeakMap(); // what is known of a word's element

function told_of_word({ text, score, tokens }) {
  const rows = tokens.length > 1 ? tokens : [];
  return [
    make("b", {}, text), " ", make("span", { className: "number" }, signed(score)),
    make("table", {}, ...rows.map(([token, own]) =>
      make("tr", {}, make("td", {}, token), make("td", { className: "number" }, signed(own))))),
  ];
}

/** Put pieces in the place of a text, the same characters. */
function colour(place, pieces) {
  place.replaceChildren(...pieces.map((piece) => {
    const [text, share, score, tokens] = piece;
    if (piece.length === 1) return text;
    if (share === null) return make("span", { className: "unread", title: "not read" }, text);
    const word = make("span", { className: "word", role: "button", "--tone": TONE(share), "--share": Math.abs(share) }, text);
    inside_of.set(word, { text, score, tokens });
    return word;
  }));
  arrows(place, ".word");
}

/** All words with their scores, to be sorted. */
function table_of_words(data) {
  const several = data.texts.length > 1;
  const words = data.texts.flatMap((pieces, which) =>
    pieces.filter((piece) => piece.length > 2).map(([text, share, score]) => ({ text, share, score, name: data.names[which] })));
  words.forEach((word, number) => { word.number = number + 1; });
  const columns = [["number", "no."], ["text", "word"], ...(several ? [["name", "text"]] : []), ["score", "score"]];
  const body = make("tbody");
  const heads = columns.map(([key, title]) => {
    const head = make("th", { scope: "col", className: key === "score" || key === "number" ? "number" : "" }, make("button", { type: "button" }, title));
    head.firstChild.addEventListener("click", () => sort(key, head.getAttribute("aria-sort") === "descending" ? 1 : -1));
    return [key, head];
  });
  const sort = (key, direction) => {
    const compared = (a, b) =>
      typeof a[key] === "string" ? a[key].localeCompare(b[key]) : (a[key] ?? -Infinity) - (b[key] ?? -Infinity);
    words.sort((a, b) => direction * compared(a, b) || a.number - b.number);
    for (const [name, head] of heads) {
      if (name === key) head.setAttribute("aria-sort", direction < 0 ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    }
    body.replaceChildren(...words.map(line));
  };
  const line = ({ number, text, name, score, share }) => {
    const bar = make("i", { "--tone": TONE(share) });
    bar.style.width = `${Math.abs(share) * 50}%`;
    bar.style[share < 0 ? "right" : "left"] = "50%";
    return make("tr", {}, make("td", { className: "number" }, number), make("td", {}, text),
      ...(several ? [make("td", {}, name)] : []), make("td", { className: "number" }, signed(score)),
      make("td", { className: "lean" }, make("div", {}, bar)));
  };
  sort("score", -1);
  const head = make("tr", {}, ...heads.map(([, one]) => one), make("td"));
  return make("div", { className: "wide" }, make("table", { className: "words" }, make("thead", {}, head), body));
}
