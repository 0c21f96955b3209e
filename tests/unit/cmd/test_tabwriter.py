"""Tables as Go's text/tabwriter lays them out; the expected texts are what Debian's ctr printed."""

from orlop.cmd.tabwriter import TabWriter


def test_columns_of_blanks_end_with_a_blank() -> None:
    table = TabWriter()
    table.row("NAME", "LABELS")
    table.row("foo", "mylabel=bar")
    assert str(table) == "NAME LABELS      \nfoo  mylabel=bar \n"


def test_what_follows_the_last_tab_is_not_padded() -> None:
    table = TabWriter(4, 8, 4)
    table.row("TASK", "PID", "STATUS")
    table.line("s1\t8340\tRUNNING")
    assert str(table) == "TASK    PID     STATUS    \ns1      8340    RUNNING\n"


def test_tabs_pad_to_multiples_of_their_width() -> None:
    table = TabWriter(1, 8, 1, "\t")
    table.line("DIGEST\tSIZE\tAGE")
    table.line("sha256:0123456789\t485B\t1 second")
    assert str(table) == "DIGEST\t\t\tSIZE\tAGE\nsha256:0123456789\t485B\t1 second\n"


def test_a_column_is_as_wide_as_its_block_only() -> None:
    table = TabWriter()
    table.line("a\tb")
    table.line("no cell at all")
    table.line("much longer\tb")
    assert str(table) == "a b\nno cell at all\nmuch longer b\n"
