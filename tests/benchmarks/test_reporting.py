"""Tables of reports."""

import pytest

from pvc.reporting.markdown import markdown_table


def test_a_table_has_a_header_a_rule_and_its_rows():
    table = markdown_table(("model", "ms"), [("PVC", 12), ("InternVL2", 3.5)], align="lr")
    assert table == "| model | ms |\n|---|---:|\n| PVC | 12 |\n| InternVL2 | 3.5 |"


def test_columns_are_aligned_left_where_nothing_is_said():
    assert markdown_table(("a", "b"), []) == "| a | b |\n|---|---|"


@pytest.mark.parametrize("rows, align", [([("a",)], ""), ([], "l"), ([], "lx")])
def test_another_number_of_columns_is_refused(rows, align):
    with pytest.raises(ValueError, match="expected 2 columns"):
        markdown_table(("a", "b"), rows, align=align)


def test_a_cell_ends_neither_its_column_nor_its_row():
    assert markdown_table(("a|b", "c"), [("x\ny\r\nz", "1|2")]).splitlines() == [
        "| a\\|b | c |",
        "|---|---|",
        "| x y z | 1\\|2 |",
    ]
