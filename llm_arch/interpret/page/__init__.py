"""Explanations as a page: one HTML file that needs nothing else, to look at in any browser."""

from llm_arch.interpret.page.document import Page, page_of

__all__ = ["Page", "page_of"]
