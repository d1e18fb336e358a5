"""A document of sections, written as one page of HTML that needs nothing else, and in Markdown.

Every text, from labels to reasons, is escaped here and nowhere else.
"""

import base64
import dataclasses
import hashlib
import html
import re
from collections.abc import Sequence

from raytrain.report.plots import Picture

_SHOWN = 30  # rows of a table before the rest is folded
_NARROW = 3  # columns that fit on a phone's page


@dataclasses.dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclasses.dataclass(frozen=True)
class Missing:
    """Why something is not here."""

    text: str


@dataclasses.dataclass(frozen=True)
class Items:
    """A list of paragraphs."""

    items: Sequence[str]


@dataclasses.dataclass(frozen=True)
class Code:
    """Lines to copy."""

    text: str


@dataclasses.dataclass(frozen=True)
class Table:
    """`rows` beyond the first `_SHOWN` are folded, but those in `kept` (their numbers); those in `marked` stand out.

    `texts` are the numbers of the columns that hold words: they are set left and may wrap.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    texts: Sequence[int] = (0,)
    kept: frozenset[int] = frozenset()
    marked: frozenset[int] = frozenset()

    @property
    def shown(self) -> list[int]:
        return [row for row in range(len(self.rows)) if row < _SHOWN or row in self.kept]

    @property
    def folded(self) -> list[int]:
        return [row for row in range(len(self.rows)) if row >= _SHOWN and row not in self.kept]


@dataclasses.dataclass(frozen=True)
class Image:
    """`name` is that of its files; `caption` describes what it shows."""

    name: str
    caption: str
    picture: Picture


@dataclasses.dataclass(frozen=True)
class Folded:
    """`blocks` that a reader opens by their `title`; in Markdown they stand open."""

    title: str
    blocks: Sequence["Block"]


Block = Text | Missing | Items | Code | Table | Image | Folded


@dataclasses.dataclass(frozen=True)
class Section:
    """A heading, the `id` that links lead to, and what stands below it."""

    id: str
    title: str
    blocks: Sequence[Block]


_STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 74rem; padding: 1rem; background: #fff; color: #1a1a1a;
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: .5rem 0; }
h2 { font-size: 1.2rem; line-height: 1.3; margin: 2.2rem 0 .5rem; padding-top: .5rem; border-top: 1px solid #ccc; }
nav ul { display: flex; flex-wrap: wrap; gap: 0 1rem; list-style: none; margin: 0; padding: 0; font-size: .9rem; }
nav a { color: #00558a; display: inline-block; padding: .15rem 0; }
p, li, figcaption { max-width: 46rem; }
p, ul, figure, pre, .scroll { margin: .6rem 0; }
ul { padding-left: 1.3rem; }
li { margin: .25rem 0; }
.missing { border-left: .25rem solid #767676; padding: .1rem 0 .1rem .75rem; color: #333; }
.scroll { overflow-x: auto; max-width: 100%; background:
  linear-gradient(to right, #fff 1rem, transparent) local, linear-gradient(to left, #fff 1rem, transparent) local,
  linear-gradient(to right, #bbb, transparent .6rem), linear-gradient(to left, #bbb, transparent .6rem); }
.scroll:focus-visible { outline: 2px solid #00558a; }
table { border-collapse: collapse; font-size: .85rem; line-height: 1.35; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem .3rem 0; text-align: right; vertical-align: top; white-space: nowrap;
  border-bottom: 1px solid #ddd; overflow-wrap: normal; }
th { border-bottom: 1px solid #555; vertical-align: bottom; font-weight: 600; }
.words { text-align: left; white-space: normal; max-width: 26rem; overflow-wrap: break-word; }
th { white-space: normal; }
[id^="ranking"] td { white-space: normal; }
[id^="ranking"] td.words { min-width: 5rem; }
[id^="ranking"] details td.words:nth-child(3) { min-width: 12rem; }
th button { font: inherit; color: inherit; background: none; border: 0; padding: 0; margin: 0; text-align: inherit;
  cursor: pointer; white-space: inherit; }
th button:hover { text-decoration: underline; }
th[aria-sort="ascending"] button::after { content: " \\2191"; }
th[aria-sort="descending"] button::after { content: " \\2193"; }
tbody tr:hover { background: #eef4fa; }
#reproduce td { overflow-wrap: anywhere; }
[id^="answer"] p:not(.missing) { font-size: 1.15rem; line-height: 1.4; }
.marked { background: #fdf1dc; }
.kept { font-weight: 600; }
summary { cursor: pointer; padding: .3rem 0; font-size: .9rem; }
figure { margin-inline: 0; }
figcaption { font-size: .9rem; color: #333; }
img { display: block; height: auto; max-width: 100%; }
pre { overflow-x: auto; padding: .6rem .8rem; background: #f4f4f4; font-size: .85rem; overflow-wrap: normal; }
@media (max-width: 40rem) {
  .cards thead { display: none; }
  .cards, .cards tbody, .cards tr { display: block; }
  .cards tr { padding: .4rem 0; border-bottom: 1px solid #ddd; }
  .cards td, [id^="ranking"] .cards td.words { display: inline-block; min-width: 0; max-width: 100%; border: 0;
    text-align: left; padding: .1rem .9rem .1rem 0; white-space: normal; overflow-wrap: anywhere; }
  .cards td::before { content: attr(data-name) " "; color: #555; font-weight: 400; }
}
@media print {
  body { max-width: none; padding: 0; font-size: 10pt; }
  nav { display: none; }
  .scroll, pre { overflow: visible; background: none; }
  pre { white-space: pre-wrap; }
  table { font-size: 7.5pt; }
  figure, tr { break-inside: avoid; }
  h2 { break-after: avoid; }
}
"""
# Sorts a table by the column whose heading is pressed, by the first number in its cells or else by their text; rows
# that are folded elsewhere stay there.
_SCRIPT = """
for (const head of document.querySelectorAll("th button")) {
  head.addEventListener("click", () => {
    const th = head.parentElement, body = th.closest("table").tBodies[0], column = th.cellIndex;
    const down = th.getAttribute("aria-sort") === "ascending";
    for (const other of th.parentElement.children) other.removeAttribute("aria-sort");
    th.setAttribute("aria-sort", down ? "descending" : "ascending");
    const text = row => row.cells[column].textContent.replace(/\\u2212/g, "-").replace(/,(?=\\d{3})/g, "").trim();
    const number = /^[<*+]*(-?[\\d.]+(e[-+]?\\d+)?)/i;
    const key = row => +(text(row).match(number) || [0, NaN])[1];
    const compare = (a, b) => {
      const x = key(a), y = key(b);
      if (isNaN(x) !== isNaN(y)) return isNaN(x) ? 1 : -1;
      const order = isNaN(x) ? text(a).localeCompare(text(b)) : x - y;
      return down ? -order : order;
    };
    [...body.rows].sort(compare).forEach(row => body.append(row));
  });
}
"""
# Nothing may be loaded, and no script but the one above may run, whatever a label holds.
_DIGEST = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
_POLICY = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{_DIGEST}'"


def page(title: str, parts: Sequence[Section]) -> str:
    """As one page of HTML, pictures and style inside."""
    links = "".join(f'<li><a href="#{part.id}">{_html(part.title)}</a></li>' for part in parts)
    bodies = "\n".join(
        f'<section id="{part.id}">\n<h2>{_html(part.title)}</h2>\n'
        + "\n".join(_html_block(block, part.title) for block in part.blocks)
        + "\n</section>"
        for part in parts
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{_html(title)}</title>
<link rel="icon" href="data:,">
<style>{_STYLE}</style>
</head>
<body>
<header>
<h1>{_html(title)}</h1>
<nav aria-label="Sections"><ul>{links}</ul></nav>
</header>
<main>
{bodies}
</main>
<script>{_SCRIPT}</script>
</body>
</html>
"""


def summary(title: str, parts: Sequence[Section]) -> str:
    """In Markdown (GitHub's), with the pictures beside it."""
    bodies = (
        "\n\n".join([f"## {markdown(part.title)}", *(_markdown_block(block) for block in part.blocks)])
        for part in parts
    )
    return "\n\n".join([f"# {markdown(title)}", *bodies]) + "\n"


def _html(text: str) -> str:
    return html.escape(text, quote=True)


def _html_block(block: Block, title: str) -> str:
    match block:
        case Text(text):
            return f"<p>{_html(text)}</p>"
        case Missing(text):
            return f'<p class="missing">{_html(text)}</p>'
        case Items(items):
            return f"<ul>{''.join(f'<li>{_html(item)}</li>' for item in items)}</ul>"
        case Code(text):
            return f'<pre tabindex="0"><code>{_html(text)}</code></pre>'
        case Table():
            folded = _html_table(block, block.folded, title) if block.folded else ""
            more = f"<details><summary>{len(block.folded)} more rows</summary>{folded}</details>" if folded else ""
            return _html_table(block, block.shown, title) + more
        case Folded(name, blocks):
            inside = "\n".join(_html_block(one, title) for one in blocks)
            return f"<details><summary>{_html(name)}</summary>\n{inside}\n</details>"
        case Image():
            # Never so small that the text in it cannot be read: then its box scrolls.
            width = block.picture.width
            size = f"width: {round(1.25 * width)}px; min-width: {round(0.72 * width)}px"
            image = f'<img src="{block.picture.data_uri}" alt="{_html(block.caption)}" style="{size}">'
            return f"<figure>{_box(title, image)}<figcaption>{_html(block.caption)}</figcaption></figure>"


def _html_table(table: Table, numbers: Sequence[int], title: str) -> str:
    kinds = [' class="words"' if column in table.texts else "" for column in range(len(table.columns))]
    is_sorted = len(numbers) > 1 and any(table.columns)
    texts = [f"<button>{_html(name)}</button>" if is_sorted and name else _html(name) for name in table.columns]
    head = "".join(f'<th scope="col"{kind}>{text}</th>' for text, kind in zip(texts, kinds, strict=True))
    lines = []
    is_wide = len(table.columns) > _NARROW  # then a row is a card on a phone, where each cell names its column
    names = [f' data-name="{_html(name)}"' if is_wide else "" for name in table.columns]
    for number in numbers:
        classes = [name for name in ("marked", "kept") if number in getattr(table, name)]
        row = zip(table.rows[number], kinds, names, strict=True)
        cells = "".join(f"<td{kind}{name}>{_html(_INTERVAL.sub(_unbroken, cell))}</td>" for cell, kind, name in row)
        lines.append(f'<tr class="{" ".join(classes)}">{cells}</tr>' if classes else f"<tr>{cells}</tr>")
    head = f"<thead><tr>{head}</tr></thead>" if any(table.columns) else ""
    style = ' class="cards"' if is_wide else ""
    return _box(title, f"<table{style}>{head}<tbody>{''.join(lines)}</tbody></table>")


_INTERVAL = re.compile("\\([\\d.]+ (to [\\d.]+|or more)\\)| \N{PLUS-MINUS SIGN}")


def _unbroken(match: re.Match[str]) -> str:
    return match[0].replace(" ", "\N{NO-BREAK SPACE}")


def _box(title: str, content: str) -> str:
    """Wide content scrolls in a box of its own, by keyboard too."""
    return f'<div class="scroll" role="region" aria-label="{_html(title)}" tabindex="0">{content}</div>'


def markdown(text: str) -> str:
    """`text` on one line with nothing in it that Markdown, or HTML in it, gives a meaning."""
    text = re.sub(r"([\\`*\[\]#|~])", r"\\\1", " ".join(text.split()))
    text = re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", text)
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"^(\d+(?=[.)](?: |$))|(?=[-+] ))", r"\1\\", text)


def _markdown_block(block: Block) -> str:
    match block:
        case Text(text):
            return markdown(text)
        case Missing(text):
            return f"> {markdown(text)}"
        case Items(items):
            return "\n".join(f"- {markdown(item)}" for item in items)
        case Code(text):
            fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
            return f"{fence}\n{text}\n{fence}"
        case Table():
            lines = [table_line(block.columns)]
            lines.append("|" + "|".join("---" if i in block.texts else "--:" for i in range(len(block.columns))) + "|")
            lines += [table_line(block.rows[number]) for number in block.shown]
            more = f"\n\n{len(block.folded)} more rows are in index.html." if block.folded else ""
            return "\n".join(lines) + more
        case Folded(name, blocks):
            return "\n\n".join([f"{markdown(name)}:", *map(_markdown_block, blocks)])
        case Image():
            return f"![{markdown(block.caption)}]({block.name}.png)"


def table_line(cells: Sequence[str]) -> str:
    """A row of a Markdown table."""
    return "| " + " | ".join(map(markdown, cells)) + " |"
