"""The one writer of Markdown tables.

tabulate, the library for this, neither escapes `|` nor keeps a cell with a line break on its row, and pads every
line of a committed page when one cell grows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def markdown_table(head: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    r"""Write a table as Markdown: a `|` in a cell is escaped, a line break becomes a space.

    Args:
        head: the columns' names.
        rows: as many cells each as there are columns, written as `str` gives them.

    >>> print(markdown_table(["name", "n"], [["a|b", 3]]))
    | name | n |
    | --- | --- |
    | a\|b | 3 |
    """
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(_escaped, line)) + " |" for line in lines)


def _escaped(cell: object) -> str:
    return str(cell).replace("|", r"\|").replace("\n", " ")
