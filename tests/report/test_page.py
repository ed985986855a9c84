"""The page is one file that loads and runs nothing, escapes every name, and says what the store holds, in order."""

import re
from html.parser import HTMLParser

import pytest
from synthetic_runs import make_run

from raydd.errors import UserError
from raydd.evaluate.compare import compare
from raydd.evaluate.record import read_results
from raydd.report.html import VOID
from raydd.report.page import write_report
from raydd.report.tables import summary_text
from raydd.store import filesystem as files
from raydd.store import scores

SECTIONS = [
    "Accuracy",
    "Accuracy over images per class",
    "Accuracy per class",
    "Images",
    "Learning curves",
    "Dropped images",
    "Bytes",
    "Time",
    "Configuration and versions",
]


class Page(HTMLParser):
    """Tags with attributes, titles of sections, visible text; fails on tags that do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.sections, self.text, self.stack = [], [], "", []
        self.feed(text)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        if self.stack and self.stack[-1] == "h2":
            self.sections.append(data)
        if "style" not in self.stack:
            self.text += data


def read(uri: str) -> tuple[str, Page]:
    text = files.read_bytes(uri).decode()
    return text, Page(text)


@pytest.fixture(scope="module")
def many(runs, tmp_path_factory) -> tuple[str, Page]:
    return read(write_report(runs, str(tmp_path_factory.mktemp("report")), "demo"))


def test_sections_come_in_order(many):
    assert many[1].sections == SECTIONS


def test_nothing_is_loaded_and_nothing_runs(many):
    text, page = many
    assert not {"script", "link", "iframe", "object", "form"} & {tag for tag, _ in page.tags}
    sources = [attrs["src"] for _, attrs in page.tags if "src" in attrs]
    assert len(sources) > 100 and all(source.startswith("data:image/") for source in sources)
    assert not any("href" in attrs or any(name.startswith("on") for name in attrs) for _, attrs in page.tags)
    assert "url(" not in text and "@import" not in text


def test_every_mean_of_the_comparison_is_in_the_table(many, runs):
    for block in compare([read_results(run) for run in runs]):
        for row in block.rows:
            assert summary_text(row.summary) in many[1].text


def test_it_opens_with_best_random_and_full(many):
    assert re.search(
        r"infoutil distilled digits to 10 images per class: convnet3 trained on them reaches [\d.]+ %, "
        r"against [\d.]+ % on random real images and [\d.]+ % on the full data\.",
        many[1].text,
    )


def test_one_run_without_evaluations(tmp_path):
    run = make_run(str(tmp_path / "run"), "infoutil", 1, 0)
    files.remove_tree(run.path("evaluation"))
    uri = write_report([run], run.uri, "one")
    assert uri == run.path("report.html")
    _, page = read(uri)
    assert page.sections == ["Accuracy", "Images", "Dropped images", "Bytes", "Time", "Configuration and versions"]
    assert "no student has been evaluated yet" in page.text and "raydd evaluate" in page.text


def test_one_evaluated_run_claims_no_gain(tmp_path):
    run = make_run(str(tmp_path / "run"), "infoutil", 1, 0)
    _, page = read(write_report([run], str(tmp_path / "other.html"), "one"))
    assert "so no gain is claimed" in page.text and "Difference to random" not in page.text
    assert "Accuracy by method" not in page.sections


def test_names_from_outside_are_text(tmp_path):
    evil = '"><script>alert(1)</script><img src=x onerror=1> $x^{$ & '
    run = make_run(str(tmp_path / "run"), "random", 1, 0, classes=[f"{evil}{i}" for i in range(10)])
    scores.commit_unit(run, "u", 0, None, [(f"{evil}key", f"{evil}reason")])
    text, page = read(write_report([run], f"memory://{tmp_path}", evil))
    assert not [tag for tag, _ in page.tags if tag == "script"] and "<script" not in text
    assert f"{evil}key" in page.text and f"{evil}3" in page.text
    assert not any("onerror" in attrs for _, attrs in page.tags)


def test_dropped_images_are_counted_with_first_keys(tmp_path):
    run = make_run(str(tmp_path / "run"), "random", 1, 0)
    scores.commit_unit(run, "u", 0, None, [(f"k{i}", "truncated file") for i in range(7)])
    _, page = read(write_report([run], run.uri, "t"))
    assert "truncated file" in page.text and "k0, k1, k2, k3, k4, ..." in page.text and "k5" not in page.text


def test_stale_evaluations_are_marked(tmp_path):
    run = make_run(str(tmp_path / "run"), "random", 1, 0, revision=5)
    _, page = read(write_report([run], run.uri, "t"))
    assert "its evaluations are stale" in page.text and "stale: evaluate again" in page.text
    assert "Accuracy per class" not in page.sections


def test_the_ceiling_alone_is_no_distilled_set(tmp_path):
    run = make_run(str(tmp_path / "run"), "full", 1, 0)
    _, page = read(write_report([run], run.uri, "t"))
    assert "no distilled set is among these runs" in page.text and "Images" not in page.sections


def test_equal_runs_give_equal_pages(runs, tmp_path):
    first = write_report(runs[:2], str(tmp_path / "a.html"), "t")
    second = write_report(runs[:2], str(tmp_path / "b.html"), "t")
    assert files.read_bytes(first) == files.read_bytes(second)


def test_no_runs_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="no runs"):
        write_report([], str(tmp_path), "t")
