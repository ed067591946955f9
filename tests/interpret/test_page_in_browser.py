"""The page in a real browser: what a reader sees and touches, in light and dark, at a desk and on a phone."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from llm_arch.interpret import Explanation, Explanations, Inside, WordShare, explain, look_inside
from llm_arch.interpret.page import page_of

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install 'llm_arch[dev]'")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs a browser: apt-get install chromium")

HOSTILE = (
    "</script><script>window.ran=1</script><img src=x onerror=window.ran=1>\"'&lt; \r\n <!-- \U0001f600 "
    "<a href='javascript:window.ran=1'>x</a> end"
)
# How many colours a canvas shows.
COLOURS = """one => {
    const image = one.getContext('2d').getImageData(0, 0, one.width, one.height);
    return new Set(new Uint32Array(image.data.buffer)).size;
}"""
TEXTS = ["turn on unbelievably bright kitchen lights!", HOSTILE, "cold"]


class Shown(NamedTuple):
    """A page, what it is of, and what it has complained of or asked for."""

    page: Any
    found: Explanations
    insides: list[Inside]
    said: list[str]
    asked: list[str]

    def word(self, row: int, number: int) -> Any:
        return self.page.locator(".row").nth(row).locator(".word").nth(number)

    def background(self, place: Any) -> list[float]:
        """Red, green, blue, and how opaque it is."""
        colour = place.evaluate("one => getComputedStyle(one).backgroundColor")
        numbers = [float(one) for one in colour.replace("/", " ").replace(",", " ").split("(")[1].rstrip(")").split()]
        return [*numbers, 1.0][:4]

    def fits(self) -> bool:
        """Whether nothing makes the page scroll to the side."""
        return bool(self.page.evaluate("document.documentElement.scrollWidth <= innerWidth"))

    def open(self, title: str, row: int = 0) -> Any:
        part = self.page.locator(".row").nth(row).locator("details", has_text=title)
        part.locator("summary").click()
        part.locator(":scope > :not(summary)").first.wait_for(state="attached")  # what is inside is made only then
        return part


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


Show = Callable[..., Shown]


@pytest.fixture
def show(browser: Any, make: Any, tmp_path: Path) -> Iterator[Show]:
    """Opens a page of a tiny GPT-2, which fails if anything is wrong with it in the end."""
    opened: list[Shown] = []

    def show(found: Explanations | None = None, **context: Any) -> Shown:
        insides: list[Inside] = []
        if found is None:
            model = make("next", max_length=64)
            found = explain(model, TEXTS, method="gradient_x_input")
            insides = look_inside(model, TEXTS, lens=True, positions="all")
        file = tmp_path / "page.html"
        file.write_text(page_of(found, insides, {"model": "tiny"}), encoding="utf-8", newline="")
        page = browser.new_context(**{"viewport": {"width": 1000, "height": 800}, **context}).new_page()
        shown = Shown(page, found, insides, [], [])
        page.on("console", lambda message: shown.said.append(message.text))
        page.on("pageerror", lambda error: shown.said.append(str(error)))
        page.on("request", lambda request: shown.asked.append(request.url))
        page.goto(file.as_uri())
        opened.append(shown)
        return shown

    yield show
    for shown in opened:
        assert shown.said == []
        assert shown.asked == [(tmp_path / "page.html").as_uri()]
        shown.page.context.close()


def test_words_are_coloured_by_the_sign_of_their_score(show: Show) -> None:
    shown = show()
    words = shown.found[0].words
    largest = max(abs(word.score) for word in words)
    assert {word.score > 0 for word in words} == {True, False}
    for number, word in enumerate(words):
        red, _, blue, strength = shown.background(shown.word(0, number))
        assert shown.word(0, number).text_content() == word.word
        assert (blue > red) == (word.score > 0)
        assert strength == pytest.approx(0.6 * abs(word.score) / largest, abs=0.01)


def test_a_word_tells_its_score_and_tokens(show: Show) -> None:
    model_words = (
        WordShare("cold", "text", 0, 4, -0.5),
        WordShare("light", "text", 5, 10, 2.0),
    )
    shown = show(Explanations([Explanation(0, {"text": "cold light"}, "b", 1.0, model_words, 0.0, None, "shap")]))
    tip = shown.page.locator("#tip")
    assert not tip.is_visible()
    shown.word(0, 0).hover()
    assert tip.text_content() == "cold −0.5000"
    shown.page.mouse.move(5, 5)
    assert not tip.is_visible()
    shown.page.locator("#theme").focus()
    shown.page.keyboard.press("Tab")  # the number of the row, a link
    shown.page.keyboard.press("Tab")
    assert tip.text_content() == "cold −0.5000"
    shown.page.keyboard.press("ArrowRight")
    assert tip.text_content() == "light +2.0000"
    assert shown.word(0, 1).get_attribute("aria-describedby") == "tip"
    shown.page.keyboard.press("Escape")
    assert not tip.is_visible()


def test_tokens_of_a_word(show: Show, make: Any) -> None:
    found = explain(make("classes"), TEXTS[0], method="gradient_x_input")
    shown = show(found)
    number = next(i for i, word in enumerate(found[0].words) if len(word.tokens) > 1)
    shown.word(0, number).click()
    rows = shown.page.locator("#tip tr").all_text_contents()
    assert len(rows) == len(found[0].words[number].tokens)
    assert all(row.startswith(one.token) for row, one in zip(rows, found[0].words[number].tokens, strict=True))


def test_hostile_texts_are_shown_and_do_not_run(show: Show) -> None:
    shown = show()
    shown.page.wait_for_timeout(100)
    assert shown.page.evaluate("window.ran") is None
    text = shown.page.locator(".row").nth(1).locator(".text")
    assert text.locator(".word").count()
    assert text.evaluate("one => one.textContent") == HOSTILE
    assert shown.page.locator("#rows img, #rows a:not([href^='#row-'])").count() == 0


def test_the_table_is_sorted(show: Show) -> None:
    shown = show()
    table = shown.open("table")
    of = {word.word: word.score for word in shown.found[0].words}

    def column(number: int) -> list[str]:
        return [str(one) for one in table.locator(f"tbody td:nth-child({number})").all_text_contents()]

    assert column(2) == sorted(of, key=lambda word: -of[word])
    table.get_by_role("button", name="score").click()
    assert column(2) == sorted(of, key=lambda word: of[word])
    assert table.locator("th").nth(2).get_attribute("aria-sort") == "ascending"
    table.get_by_role("button", name="no.").click()
    table.get_by_role("button", name="no.").click()
    assert column(2) == [word.word for word in shown.found[0].words]


def test_attention_of_a_head(show: Show) -> None:
    shown = show()
    part = shown.open("attention")
    canvas = part.locator("canvas.map")
    canvas.wait_for()
    maps = shown.insides[0].sequences[0].attention
    assert maps is not None
    buttons = part.locator(".heads button")
    assert buttons.count() == sum(len(layer) + 1 for layer in maps)
    assert part.locator(".heads .weight").count() == sum(map(len, maps))
    part.get_by_role("button", name="layer 2, head 1").click()
    assert canvas.evaluate(COLOURS) > 10
    assert buttons.nth(1).locator("canvas").evaluate(COLOURS) > 1
    told = part.locator(".told")
    canvas.focus()
    for _ in range(3):
        shown.page.keyboard.press("ArrowDown")
    tokens = shown.insides[0].sequences[0].tokens
    number = maps[1][0, 3, 0]
    assert f"“{tokens[3]}” looks at “{tokens[0]}” with" in told.text_content()
    assert float(told.text_content().split()[-1]) == pytest.approx(number, abs=1 / 255 + 1e-3)
    box = canvas.bounding_box()
    canvas.hover(position={"x": box["width"] - 4, "y": box["height"] - 4})
    assert f"“{tokens[-1]}” looks at “{tokens[-1]}”" in told.text_content()


def test_what_each_layer_would_say(show: Show) -> None:
    shown = show()
    part = shown.open("layers")
    lens = shown.insides[0].lens
    assert lens is not None
    cells = part.locator("td span")
    assert cells.count() == len(lens.positions) * len(lens.positions[0].layers)
    assert cells.first.text_content() == lens.positions[0].layers[0].tokens[0].token
    cells.last.click()
    said = shown.page.locator("#tip td:first-child").all_text_contents()
    assert said == [one.token for one in lens.positions[-1].layers[-1].tokens]


def test_dark_and_light(show: Show) -> None:
    for scheme in ("light", "dark"):
        shown = show(color_scheme=scheme)
        body = shown.page.locator("body")
        before = shown.background(body)[0]
        assert (before > 128) == (scheme == "light")
        shown.page.locator("#theme").click()
        assert (shown.background(body)[0] > 128) == (scheme == "dark")
        shown.page.locator("#theme").click()
        assert shown.background(body)[0] == before


def test_on_a_phone(show: Show) -> None:
    shown = show(viewport={"width": 360, "height": 740}, is_mobile=True, has_touch=True)
    shown.word(0, 1).tap()
    tip = shown.page.locator("#tip")
    assert tip.is_visible()
    assert tip.bounding_box()["y"] > 370  # at the lower end, where no finger is
    assert shown.word(0, 1).bounding_box()["height"] >= 24
    for title in ("table", "attention", "layers"):
        part = shown.open(title)
        assert part.locator("summary").bounding_box()["height"] >= 24
        part.locator("table, canvas").first.wait_for()
    assert shown.fits()


def test_hundreds_of_rows(show: Show) -> None:
    words = tuple(WordShare("word", "text", 5 * i, 5 * i + 4, i - 9.5) for i in range(20))
    many = [Explanation(i, {"text": "word " * 20}, f"label {i}", 1.0, words, 0.0, None, "shap") for i in range(400)]
    shown = show(Explanations(many))
    drawn = shown.page.locator("[data-drawn]")
    assert 0 < drawn.count() < 40
    assert shown.page.locator(".text").last.text_content() == "word " * 20  # can be found before it is coloured
    shown.page.locator("#filter").fill("label 39")
    assert shown.page.locator(".row:visible").count() == 11
    assert shown.page.locator("#count").text_content() == "11 of 400"
    shown.page.locator("#filter").fill("")
    shown.page.evaluate("location.hash = '#row-400'")
    shown.page.locator("#row-400 .word").first.wait_for()
    assert drawn.count() < 80


def test_without_any_row(show: Show) -> None:
    assert show(Explanations()).page.locator("main").text_content().strip() == "no rows"
