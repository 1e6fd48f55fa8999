"""MkDocs hook: long pages full of terms come last in the search, behind what newcomers read."""

from typing import Any

LAST = ("design.md", "architectures.md", "results-0.1.0.md", "performance.md")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Give a page's sections less weight among the results of a search."""
    if page.file.src_uri in LAST:
        page.meta["search"] = {"boost": 0.1}
    return markdown
