"""Score tables: one pass over what is missing, resumed by unit, shared between runs; dropped images are listed."""

import pytest
from commandline import snapshot

from raydd.errors import UserError
from raydd.pipelines import score as scoring
from raydd.pipelines.request import DistillOptions, open_job
from raydd.pipelines.score import feature_scoring, fill_tables, key_set, open_table
from raydd.runtime.work import Resources
from raydd.score.table import ScoreConfig
from raydd.store import scores

LOCAL = Resources(executor="local")


@pytest.fixture
def job(tree, tmp_path, digits_teacher):
    return open_job(DistillOptions(data=str(tree), out=str(tmp_path / "run"), teacher=digits_teacher, batch=8))


def table_of(job, *names: str, keys=None, shared=None, force: bool = False):
    return open_table(job, feature_scoring(job, ScoreConfig(scores=names), keys), shared=shared, force=force)


def test_every_image_is_scored_once_by_class(job):
    table = table_of(job, "loss", "features")
    fill_tables([table], LOCAL)
    for label in range(3):
        rows = scores.read_label(table.run, label)
        assert rows["key"].to_pylist() == job.keys(label) and set(rows["label"].to_pylist()) == {label}
    assert table.run.read()["stages"]["score"] | {"images": 48, "dropped": 0} == table.run.read()["stages"]["score"]


def test_a_finished_table_is_not_touched(job):
    fill_tables([table_of(job, "loss")], LOCAL)
    before = snapshot(job.out)
    fill_tables([table_of(job, "loss")], LOCAL)
    assert snapshot(job.out) == before


def test_only_what_is_missing_is_scored_again(job, tmp_path, monkeypatch):
    monkeypatch.setattr(scoring, "UNIT_ROWS", 4)
    table = table_of(job, "loss")
    fill_tables([table], LOCAL)
    whole = [scores.read_label(table.run, label) for label in range(3)]
    parts = sorted((tmp_path / "run" / "scores" / "label=1").glob("*.parquet"))
    kept = parts[1:]
    before = [path.stat().st_mtime_ns for path in kept]
    parts[0].unlink()
    fill_tables([table_of(job, "loss")], LOCAL)
    assert [path.stat().st_mtime_ns for path in kept] == before
    assert all(scores.read_label(table.run, label).equals(whole[label]) for label in range(3))
    assert '"scoring_resumed", "done": 11, "left": 1' in (tmp_path / "run" / "events.jsonl").read_text()


def test_tables_over_the_same_images_share_a_pass(job, tmp_path, monkeypatch):
    passes = []
    whole = scoring.stream_scores

    def counted(stream, units, *rest):
        passes.append((len(stream.tables), len(units)))
        whole(stream, units, *rest)

    monkeypatch.setattr(scoring, "stream_scores", counted)
    shared = str(tmp_path / "shared")
    tables = [table_of(job, name, shared=shared) for name in ("loss", "el2n", "loss")]
    fill_tables(tables, LOCAL)
    assert passes == [(2, 3)] and tables[0].run == tables[2].run
    some = table_of(job, "loss", keys=job.keys(0)[:3], shared=shared)
    fill_tables([some, *tables], LOCAL)
    assert passes[1:] == [(1, 1)] and scores.read_label(some.run, 0).num_rows == 3


def test_another_configuration_is_refused_and_force_starts_anew(job):
    fill_tables([table_of(job, "loss")], LOCAL)
    with pytest.raises(UserError, match=r'config.scores: \["loss"\] -> \["el2n"\]'):
        table_of(job, "el2n")
    fill_tables([table_of(job, "el2n", force=True)], LOCAL)
    assert "el2n" in scores.read_label(table_of(job, "el2n").run, 0).column_names


def test_broken_and_mislabeled_images_are_dropped_counted_and_listed(tree, tmp_path, digits_teacher, capsys):
    (tree / "classes.txt").write_text("0\n1\n2\n")
    (tree / "train" / "seven").mkdir()
    (tree / "train" / "seven" / "x.png").write_bytes((tree / "train" / "1" / "00.png").read_bytes())
    good = (tree / "train" / "1" / "00.png").read_bytes()
    for name, data in (("empty", b""), ("text", b"no image"), ("cut", good[: len(good) // 2])):
        (tree / "train" / "1" / f"{name}.png").write_bytes(data)
    job = open_job(DistillOptions(data=str(tree), out=str(tmp_path / "run"), teacher=digits_teacher))
    table = table_of(job, "loss")
    fill_tables([table], LOCAL)
    dropped = scores.read_dropped(table.run)
    assert [key for key, _ in dropped] == ["1/cut.png", "1/empty.png", "1/text.png", "seven/x.png"]
    assert "not in the class list" in dict(dropped)["seven/x.png"]
    assert table.run.read()["stages"]["score"]["dropped"] == 4
    assert scores.read_label(table.run, 1)["key"].to_pylist() == [f"1/{i:02d}.png" for i in range(16)]
    assert "4 images dropped, first '1/cut.png'" in capsys.readouterr().out


def test_all_keys_are_the_same_as_no_keys(job):
    everything = [key for label in range(3) for key in job.keys(label)]
    assert key_set(job, everything) is None and key_set(job, None) is None
    assert key_set(job, everything[1:]) == frozenset(everything[1:])


def test_a_teacher_is_needed(tree, tmp_path):
    job = open_job(DistillOptions(data=str(tree), out=str(tmp_path / "run"), size=16))
    with pytest.raises(UserError, match="scores loss need a teacher"):
        feature_scoring(job, ScoreConfig(scores=("loss",)))
