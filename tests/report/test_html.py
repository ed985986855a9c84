"""Everything but markup is escaped; None and False vanish."""

from raydd.report.html import Html, details, el, join, section, table


def test_text_is_escaped_and_markup_is_not():
    assert el("p", "<b>&", Html("<i>x</i>")) == "<p>&lt;b&gt;&amp;<i>x</i></p>"
    assert el("p", 3, None, class_='a"b') == '<p class="a&quot;b">3</p>'


def test_attributes():
    assert el("img", src="s", title=None, hidden=False) == '<img src="s">'
    assert el("details", open_=True) == "<details open></details>"
    assert el("meta", http_equiv="X") == '<meta http-equiv="X">'


def test_join_keeps_markup():
    assert join(["<", Html("<br>")], ", ") == "&lt;, <br>" and isinstance(join([]), Html)


def test_empty_sections_vanish():
    assert section("t", None, "") is None
    assert section("t", None, Html("<p></p>")) == "<section><h2>t</h2><p></p></section>"


def test_table_and_details():
    html = table(("a", "b"), [("<", 1)])
    assert '<th scope="row">&lt;</th><td>1</td>' in html
    assert details("s", "<") == "<details><summary>s</summary>&lt;</details>"
