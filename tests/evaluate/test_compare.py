"""Nothing is ranked across blocks; seeds are gathered and paired as the specification says, by hand computation."""

import math

import numpy as np
import pytest

from raydd.evaluate.compare import columns, compare, variant_names
from raydd.evaluate.record import Evaluation, RunResults, SeedResult
from raydd.store.run import Run


def students(*accuracies: float, best: float = 0.0, steps: int = 100) -> list[SeedResult]:
    return [
        SeedResult(seed=i, last=a, best=a + best, top5=1.0, per_class=[a], curve=[(steps, a)], steps=steps)
        for i, a in enumerate(accuracies)
    ]


def judged(method: str, seeds, *, distill_seed: int = 0, ipc: int = 10, revision: int = 1, uri=None, **fields):
    """One run with one evaluation; `fields` change the evaluation, `options` the distillation, `codec` the manifest."""
    options, codec = fields.pop("options", {}), fields.pop("codec", "png")
    manifest = {"method": method, "ipc": ipc, "seed": distill_seed, "revision": 1, "images": 10 * ipc, "codec": codec}
    plain = {
        "protocol": {"name": "hard"},
        "protocol_hash": f"h{ipc}",
        "student": "convnet3",
        "method": method,
        "ipc": ipc,
        "distill_seed": distill_seed,
        "revision": revision,
        "validation": {"uri": "v", "fingerprint": "f", "count": 100},
        "classes": ["a"],
        "labels": {"form": "hard", "teacher_hash": None},
        "bytes": {},
        "versions": {},
        "seeds": seeds,
    } | fields
    config = {"method": method, "ipc": ipc, "seed": distill_seed, "options": options}
    record = {"config": {"distill": config}}
    name = uri or f"runs/{method}-{ipc}-{distill_seed}-{options}"
    return RunResults(Run(name), record, manifest, (Evaluation(**plain),))


@pytest.mark.parametrize(
    "other",
    [
        {"protocol_hash": "else"},
        {"student": "resnet18"},
        {"validation": {"uri": "v", "fingerprint": "g", "count": 100}},
        {"labels": {"form": "online", "teacher_hash": "t"}},
        {"classes": ["b"]},
    ],
)
def test_what_differs_is_never_ranked_together(other):
    blocks = compare([judged("random", students(0.5)), judged("infoutil", students(0.9), **other)])
    assert len(blocks) == 2 and [len(block.rows) for block in blocks] == [1, 1]
    assert all(block.rows[0].rank == 1 and block.rows[0].vs_random is None for block in blocks)


def test_teachers_separate_label_regimes_of_one_form():
    labels = [{"form": "online", "teacher_hash": name} for name in ("t", "u")]
    blocks = compare(
        [judged("random", students(0.5), labels=labels[0]), judged("rded", students(0.6), labels=labels[1])]
    )
    assert len(blocks) == 2


def test_distillation_seeds_are_one_row():
    values = np.array([[0.5, 0.6], [0.7, 0.6], [0.2, 0.4]])
    (block,) = compare([judged("infoutil", students(*row), distill_seed=i) for i, row in enumerate(values)])
    (row,) = block.rows
    assert row.summary.n == 3
    assert row.summary.mean == pytest.approx(values.mean())
    assert row.summary.std == pytest.approx(values.mean(1).std(ddof=1))


def test_differences_are_paired_by_both_seeds():
    random = np.array([[0.50, 0.60], [0.40, 0.50], [0.45, 0.47]])
    gain = np.array([[0.10, 0.12], [0.08, 0.10], [0.11, 0.13]])
    runs = [judged("random", students(*row), distill_seed=i) for i, row in enumerate(random)]
    runs += [judged("infoutil", students(*row), distill_seed=i) for i, row in enumerate(random + gain)]
    # A student and a distillation that random does not have are left out of the pairs.
    runs += [judged("infoutil", students(0.99, 0.99, 0.99), distill_seed=7)]
    (block,) = compare(runs)
    pair = block.rows[0].vs_random
    means = gain.mean(1)
    half = 4.302652729911275 * means.std(ddof=1) / math.sqrt(3)
    assert block.rows[0].method == "infoutil" and pair.n == 3
    assert (pair.mean, pair.low, pair.high) == pytest.approx((means.mean(), means.mean() - half, means.mean() + half))
    assert block.rows[1].method == "random" and block.rows[1].vs_random is None


def test_random_of_another_ipc_is_no_reference():
    (block,) = compare(
        [judged("random", students(0.5), ipc=1, protocol_hash="h"), judged("rded", students(0.6), protocol_hash="h")]
    )
    assert [row.vs_random for row in block.rows] == [None, None]
    assert [row.rank for row in block.rows] == [1, 1]


def test_the_ceiling_is_last_and_not_ranked():
    runs = [judged("full", students(0.99)), judged("random", students(0.5)), judged("rded", students(0.6))]
    (block,) = compare(runs)
    assert [(row.method, row.rank) for row in block.rows] == [("rded", 1), ("random", 2), ("full", None)]
    assert block.rows[2].vs_random.mean == pytest.approx(0.49)


def test_ranking_is_by_the_last_step_not_the_best():
    (block,) = compare([judged("random", students(0.5, best=0.4)), judged("rded", students(0.6, best=0.0))])
    assert block.rows[0].method == "rded" and block.rows[1].best.mean == pytest.approx(0.9)


def test_stale_rows_are_shown_unranked_and_pair_with_nothing():
    runs = [
        judged("random", students(0.5), revision=2),
        judged("rded", students(0.6)),
        judged("kmeans", students(0.9), revision=3),
    ]
    (block,) = compare(runs)
    assert [(row.method, row.rank, row.stale) for row in block.rows] == [
        ("rded", 1, False),
        ("kmeans", None, True),
        ("random", None, True),
    ]
    assert block.rows[0].vs_random is None


def test_other_options_are_other_rows_named_by_what_differs():
    runs = [
        judged("infoutil", students(0.6), options={"select": {"direction": d, "mipc": 300}}) for d in ("top", "bottom")
    ]
    runs += [judged("infoutil", students(0.7), options={"select": {"direction": "top", "mipc": 300}}, distill_seed=1)]
    (block,) = compare(runs)
    assert {(row.label, row.summary.n) for row in block.rows} == {
        ("infoutil direction=top", 2),
        ("infoutil direction=bottom", 1),
    }


def test_seed_and_ipc_make_no_variant():
    runs = [judged("rded", students(0.5), ipc=ipc, distill_seed=s) for ipc in (1, 10) for s in (0, 1)]
    assert set(variant_names(runs).values()) == {""}


def test_doped_sets_of_several_seeds_are_one_variant():
    """Each seed dopes a set of its own, whose content hash is part of the configuration."""
    runs = [judged("random+dope", students(0.5), distill_seed=s) for s in (0, 1)]
    for run, base in zip(runs, "ab"):
        run.record["config"]["distill"] |= {"base": base, "doping": {"per_class": 5}}
    assert set(variant_names(runs).values()) == {""}
    runs[1].record["config"]["distill"]["doping"] = {"per_class": 6}
    assert set(variant_names(runs).values()) == {"per_class=5", "per_class=6"}


def test_a_run_given_twice_counts_once_and_a_repeated_seed_is_noted():
    run = judged("rded", students(0.5), uri="a")
    (block,) = compare([run, run])
    assert block.rows[0].summary.n == 1 and block.notes == ()
    (block,) = compare([run, judged("rded", students(0.9), uri="b")])
    assert block.rows[0].summary.mean == 0.5 and "b repeats seed 0" in block.notes[0]


def test_unequal_budgets_and_codecs_are_noted():
    runs = [judged("random", students(0.5)), judged("rded", students(0.6, steps=300), codec="jpeg75")]
    notes = compare(runs)[0].notes
    assert any("optimizer steps (rded 300, random 100)" in note for note in notes)
    assert any("image codec (rded jpeg75, random png)" in note for note in notes)
    assert compare(runs[:1])[0].notes == ()


def test_columns_put_ipcs_of_one_protocol_side_by_side():
    runs = [judged("rded", students(0.5), ipc=ipc) for ipc in (1, 10, 50)]
    runs += [judged("rded", students(0.5), uri="soft", protocol={"name": "soft"}, protocol_hash="s")]
    blocks = compare(runs)
    assert len(blocks) == 4
    assert [[block.protocol_hash for block in column.blocks] for column in columns(blocks)] == [
        ["h1", "h10", "h50"],
        ["s"],
    ]


def test_one_name_with_two_recipes_at_one_ipc_is_two_columns():
    blocks = compare([judged("rded", students(0.5)), judged("random", students(0.5), protocol_hash="bf16")])
    assert [len(column.rows) for column in columns(blocks)] == [1, 1]


def test_the_order_of_the_runs_changes_nothing():
    runs = [
        judged(m, students(a, a + 0.1), distill_seed=s) for s in (0, 1) for m, a in (("random", 0.4), ("rded", 0.5))
    ]

    def shape(results):
        return [(row.label, row.rank, row.summary, row.vs_random) for block in compare(results) for row in block.rows]

    assert shape(runs) == shape(runs[::-1])


def started(seed: int, init: str):
    learn = {"learn": {"init": init, "steps": 5}, "inputs": [init]}
    return judged("ld3m", students(0.5), distill_seed=seed, uri=f"runs/{seed}-{init}", options=learn)


def test_runs_that_start_from_runs_of_their_seeds_are_one_variant():
    assert set(variant_names([started(s, f"/runs/kmeans-{s}") for s in (0, 1)]).values()) == {""}


@pytest.mark.parametrize(
    "starts",
    [
        [(0, "/runs/kmeans"), (0, "/runs/herding"), (1, "/runs/kmeans")],
        [(0, "/runs/kmeans-0"), (0, "/runs/herding-0"), (1, "/runs/kmeans-1"), (1, "/runs/herding-1")],
        [(0, "real"), (1, "/runs/kmeans-1")],
        [(0, "real"), (1, "gaussian")],
    ],
)
def test_other_starts_are_other_variants(starts):
    names = variant_names([started(*start) for start in starts])
    assert len(set(names.values())) == len({init for _, init in starts})
    assert all(f"init={init}" in names[f"runs/{seed}-{init}"] for seed, init in starts)
