"""Tables of text as Markdown, HTML and LaTeX."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Block:
    """A titled table: header cells, rows of cells (the first is the row's name) and what to know about it.

    ``level`` 1 starts a part of the page, 2 is a part of that, 3 holds further details (folded in HTML).
    """

    title: str
    header: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    notes: Sequence[str] = field(default_factory=tuple)
    level: int = 2


def to_markdown(blocks: Sequence[Block]) -> str:
    """GitHub-flavoured Markdown."""
    lines: list[str] = []
    for block in blocks:
        lines += ["#" * (block.level + 1) + " " + block.title, ""]
        if block.rows:
            lines += [_markdown_row(block.header), "|" + " --- |" * len(block.header)]
            lines += [_markdown_row(row) for row in block.rows] + [""]
        lines += [f"- {note}" for note in block.notes] + ([""] if block.notes else [])
    return "\n".join(lines)


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; max-width: 84rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: .5rem 0 1rem; font-size: 13px; }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
thead th { border-bottom: 2px solid #444; }
.table { overflow-x: auto; }
.notes { color: #444; font-size: 13px; }
.warning { background: #b00020; color: white; padding: .6rem 1rem; font-weight: 600; }
img { max-width: 100%; }
summary { cursor: pointer; font-weight: 600; }
"""


def to_html(blocks: Sequence[Block]) -> str:
    """HTML of the blocks, without the page around them; h1 and h2 are left to the page."""
    parts = []
    for block in blocks:
        title, body = html.escape(block.title), _html_table(block) + _html_notes(block.notes)
        if block.level > 2:
            parts.append(f"<details><summary>{title}</summary>{body}</details>")
        else:
            parts.append(f"<h{block.level + 2}>{title}</h{block.level + 2}>{body}")
    return "\n".join(parts)


def _html_table(block: Block) -> str:
    if not block.rows:
        return ""
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in block.header)
    rows = ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in block.rows]
    body = "\n".join(f"<tr>{row}</tr>" for row in rows)
    return f'<div class="table"><table><thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>\n'


def _html_notes(notes: Sequence[str]) -> str:
    if not notes:
        return ""
    return '<ul class="notes">' + "".join(f"<li>{html.escape(note)}</li>" for note in notes) + "</ul>\n"


def html_page(title: str, head: str, body: str) -> str:
    """A whole page; what stands between the ``main`` tags (``body``) can be put into another one."""
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>\n'
        f"<style>{STYLE}</style></head>\n<body>\n{head}\n<main>\n{body}\n</main>\n</body></html>\n"
    )


def body_of(page: str) -> str:
    """What stands between the ``main`` tags of a page."""
    return page.partition("<main>")[2].rpartition("</main>")[0]


_TEX = {
    **{character: "\\" + character for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": "$<$",
    ">": "$>$",
    "±": r"$\pm$",
    "−": "$-$",
    "–": "--",
    "—": "---",
    "…": r"\ldots{}",
    "×": r"$\times$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "°": r"$^\circ$",
    "²": "$^2$",
    "√": r"$\surd$",
    "≥": r"$\geq$",
    "≤": r"$\leq$",
}


def tex_escape(text: str) -> str:
    """Text for LaTeX, whose special characters are written out."""
    return "".join(_TEX.get(character, character) for character in text)


TABLES_AT_ONCE = 12
"""LaTeX holds back only so many tables (18 in old versions) until they are put on pages."""


def to_latex(blocks: Sequence[Block]) -> str:
    """LaTeX to be read by ``\\input``: one ``table`` environment per block with rows; needs no package."""
    parts: list[str] = ["% Made by this workflow; \\input this file. Needs no package."]
    for number, block in enumerate(blocks, start=1):
        if number % TABLES_AT_ONCE == 0:
            parts.append(r"\clearpage")
        if not block.rows:
            parts += [f"% {block.title}", *(f"\\par {tex_escape(note)}" for note in block.notes)]
            continue
        columns = "l" + "r" * (len(block.header) - 1)
        caption = tex_escape(" ".join([block.title + ".", *block.notes]))
        parts += [
            r"\begin{table}[htbp]\centering\scriptsize\setlength{\tabcolsep}{3pt}",
            f"\\caption{{{caption}}}",
            f"\\begin{{tabular}}{{{columns}}}",
            r"\hline",
            _tex_row(block.header),
            r"\hline",
            *(_tex_row(row) for row in block.rows),
            r"\hline",
            r"\end{tabular}",
            r"\end{table}",
        ]
    return "\n".join(parts) + "\n"


def _tex_row(cells: Sequence[str]) -> str:
    return " & ".join(map(tex_escape, cells)) + r" \\"
