
// The page: rows are drawn once they come near, the filter, and light or dark.

function draw(row) {
  const data = JSON.parse(row.querySelector("script").textContent);
  row.querySelectorAll(".text").forEach((place, number) => colour(place, data.texts[number]));
  const parts = [folded("words as a table", () => table_of_words(data))];
  const inside = data.inside;
  if (inside?.importance || inside?.sequences.some((one) => one.maps)) {
    parts.push(folded("attention", () => attention_of(inside)));
  }
  if (inside?.lens?.positions.length) parts.push(folded("layers", () => lens_of(inside)));
  row.querySelector(".more").append(...parts);
  row.dataset.drawn = "";
}

const rows = [...document.querySelectorAll(".row")];
const near = new IntersectionObserver((seen) => {
  for (const { target, isIntersecting } of seen) {
    if (!isIntersecting) continue;
    near.unobserve(target);
    draw(target);
  }
}, { rootMargin: "800px" });
for (const row of rows) near.observe(row);
addEventListener("beforeprint", () => { for (const row of rows) if (row.dataset.drawn === undefined) { near.unobserve(row); draw(row); } });
tips(document.getElementById("rows"), ".word", (word) => told_of_word(inside_of.get(word)));

const filter = document.getElementById("filter");
let searched; // texts and targets of all rows, once they are asked for
filter.addEventListener("input", () => {
  searched ??= rows.map((row) =>
    [...row.querySelectorAll(".target, .text")].map((one) => one.textContent).join("\n").toLowerCase());
  const wanted = filter.value.trim().toLowerCase();
  let found = 0;
  rows.forEach((row, number) => {
    row.hidden = !searched[number].includes(wanted);
    found += row.hidden ? 0 : 1;
  });
  document.getElementById("count").textContent = wanted ? `${found} of ${rows.length}` : "";
});

const theme = document.getElementById("theme");
const system = matchMedia("(prefers-color-scheme: dark)");
let chosen; // by the reader; until then it is the system's
function show_theme() {
  const dark = chosen ?? system.matches;
  document.documentElement.style.colorScheme = chosen === undefined ? "light dark" : dark ? "dark" : "light";
  theme.textContent = dark ? "light" : "dark";
  theme.setAttribute("aria-label", `show it ${theme.textContent}`);
  document.dispatchEvent(new Event("theme"));
}
theme.addEventListener("click", () => { chosen = !(chosen ?? system.matches); show_theme(); });
system.addEventListener("change", show_theme);
show_theme();

addEventListener("keydown", (event) => { if (event.key === "Escape") tip.hide(); });
addEventListener("scroll", () => { if (tip.owner !== document.activeElement) tip.hide(); }, { passive: true });
