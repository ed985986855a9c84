"""HTML from Python values: everything that is not already `Html` is escaped, so no name or key can inject markup."""

from collections.abc import Iterable
from html import escape

VOID = frozenset({"img", "meta", "br"})


class Html(str):
    """Text that is markup already."""


def el(tag: str, *children: object, **attributes: object) -> Html:
    """One element; children are escaped unless `Html`, `class_` becomes `class`, None and False attributes are left
    out, True ones stand alone."""
    parts = [tag]
    for name, value in attributes.items():
        name = name.rstrip("_").replace("_", "-")
        if value is True:
            parts.append(name)
        elif value is not None and value is not False:
            parts.append(f'{name}="{escape(str(value))}"')
    opening = f"<{' '.join(parts)}>"
    return Html(opening if tag in VOID else f"{opening}{join(children)}</{tag}>")


def join(children: Iterable[object], between: str = "") -> Html:
    """Children one after the other, escaped unless `Html`; None is left out."""
    return Html(between.join(c if isinstance(c, Html) else escape(str(c)) for c in children if c is not None))


def table(head: Iterable[object], rows: Iterable[Iterable[object]], class_: str | None = None) -> Html:
    """A plain table; the first cell of each row is its header."""
    header = el("thead", el("tr", *(el("th", cell, scope="col") for cell in head)))
    body = (el("tr", el("th", first, scope="row"), *(el("td", cell) for cell in rest)) for first, *rest in rows)
    return el("div", el("table", header, el("tbody", *body), class_=class_), class_="scroll")


def section(title: str, *children: object) -> Html | None:
    """A titled section, or None when there is nothing to show."""
    children = tuple(child for child in children if child)
    return el("section", el("h2", title), *children) if children else None


def details(summary: object, *children: object, open_: bool = False) -> Html:
    """A part that unfolds."""
    return el("details", el("summary", summary), *children, open_=open_)
