"""The page around its rows: style and program stand in it, and it may load or run nothing else."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from importlib.resources import files
from string import Template

from llm_arch.interpret.explanation import Explanation
from llm_arch.interpret.inside import Inside
from llm_arch.interpret.page.row import row_of
from llm_arch.interpret.page.safe import in_html
from llm_arch.interpret.pieces import AGAINST, FOR, STRONGEST

_PROGRAMS = ("parts.js", "words.js", "attention.js", "lens.js", "page.js")


class Page:
    """An HTML file of its own, without anything from elsewhere.

    A browser runs no other program in it than this package's, which a Content-Security-Policy names by its hash: texts
    of rows, whatever they hold, are shown and never run.

    Args:
        about: what to say at the top, by name, such as the model's.
    """

    def __init__(self, about: Mapping[str, str] | None = None) -> None:
        self.about = dict(about or {})
        self._rows: list[str] = []
        self._methods: dict[str, None] = {}

    def add(self, explanation: Explanation, inside: Inside | None = None) -> None:
        """Add a row.

        Args:
            explanation: of the row.
            inside: what happens inside the model there; None to leave it out.
        """
        self._methods[explanation.method] = None
        self._rows.append(row_of(len(self._rows) + 1, explanation, inside))

    def html(self) -> str:
        """The content of the file, in UTF-8."""
        facts = {**self.about, "method": ", ".join(self._methods), "rows": f"{len(self._rows):,}"}
        style, program = _file("page.css"), "".join(map(_file, _PROGRAMS))
        return Template(_file("page.html")).substitute(
            title=in_html(" · ".join(["Explanations", *self.about.values()])),
            policy=f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(program)}; img-src data:; "
            "base-uri 'none'; form-action 'none'",
            style=style,
            facts="".join(f"<div><dt>{in_html(n)}</dt><dd>{in_html(v)}</dd></div>" for n, v in facts.items() if v),
            rows="".join(self._rows) or "<p>no rows</p>",
            program=program,
        )


def page_of(
    explanations: Iterable[Explanation], insides: Iterable[Inside] = (), about: Mapping[str, str] | None = None
) -> str:
    """The content of an HTML file, see `Page`.

    Args:
        explanations: of rows, in input order.
        insides: what happens inside the model at these rows, or some of them, in input order.
        about: what to say at the top, by name, such as the model's.
    """
    page = Page(about)
    for one, inside in _together(explanations, insides):
        page.add(one, inside)
    return page.html()


def _together(
    explanations: Iterable[Explanation], insides: Iterable[Inside]
) -> Iterator[tuple[Explanation, Inside | None]]:
    """Both of each row. Neither is held longer than needed: attention is large."""
    rest = iter(insides)
    inside = next(rest, None)
    for one in explanations:
        while inside is not None and inside.index < one.index:
            inside = next(rest, None)
        yield one, inside if inside is not None and inside.index == one.index else None


def _file(name: str) -> str:
    text = (files(__package__) / name).read_text(encoding="utf-8")
    colours = {"FOR": FOR, "AGAINST": AGAINST}
    for key, rgb in colours.items():
        text = text.replace(f"{{{key}}}", " ".join(map(str, rgb)))
    return text.replace("{STRONGEST}", str(STRONGEST))


def _hash(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
