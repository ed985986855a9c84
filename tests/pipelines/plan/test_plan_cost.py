"""Amounts of work add up, over parts and over workers."""

from raydd.pipelines.plan.cost import Amount, Op, Stage, add, rows_of, times


def test_amounts_add_up():
    a, b = Op("read", "8 px"), Op("read", "16 px")
    total = add([{a: Amount(1, 2)}, {a: Amount(1, 3), b: Amount(1, 1)}])
    assert total == {a: Amount(2, 5), b: Amount(1, 1)} and rows_of([total], "read") == 6
    assert times(total, 3)[a] == Amount(6, 15)
    stage = Stage("classes", (), once={a: Amount(1, 4)})
    assert stage.total(3) == {a: Amount(3, 12)}
