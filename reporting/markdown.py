"""Tables in Markdown."""

from collections.abc import Iterable, Sequence


def markdown_table(header: Sequence[object], rows: Iterable[Sequence[object]], *, align: str = "") -> str:
    """A Markdown table without a final line break.

    Args:
        header: names of the columns.
        rows: cells, written by `str`; line breaks become blanks, and a bar is escaped.
        align: a letter a column, "l" (left) or "r" (right); empty: all left.

    Raises:
        ValueError: where a row or `align` has another number of columns than `header`.
    """
    columns = len(header)
    align = align or "l" * columns
    lines = [list(header), *(list(row) for row in rows)]

    if set(align) - {"l", "r"} or {columns} != {len(align), *map(len, lines)}:
        lengths = [len(line) for line in lines]
        raise ValueError(f"align is {align!r} and the rows have {lengths} cells: expected {columns} columns")

    texts = ["| " + " | ".join(map(_cell, line)) + " |" for line in lines]
    rule = "|" + "|".join("---:" if letter == "r" else "---" for letter in align) + "|"
    return "\n".join([texts[0], rule, *texts[1:]])


def _cell(value: object) -> str:
    """A cell that ends neither its column nor its row."""
    return " ".join(str(value).splitlines()).replace("|", "\\|")
