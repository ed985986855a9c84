"""Counts of the controls equal those of tiny distillations."""

import pytest
from pipelines.plan.plan_counter import done, planned, rows

from raydd.distill.controls import ControlConfig
from raydd.pipelines.controls import Control
from raydd.pipelines.distill import DistillOptions


@pytest.mark.parametrize("name", ["random", "kmeans", "herding"])
@pytest.mark.parametrize("mipc", [None, 9])
def test_controls(digits_tree, tmp_path, digits_teacher, name, mipc):
    asked = DistillOptions(data=str(digits_tree), out=str(tmp_path), teacher=digits_teacher, ipc=2, batch=7)
    method = Control(name, ControlConfig(mipc=mipc))
    count = rows(planned(asked, method))
    real = done(asked, method)
    assert count["teacher"] == real["classified"] and (count["teacher"] > 0) == (name != "random")
    # Random images have spares for broken ones, here the whole class.
    assert count["read 16 px"] == real["read 16 px"] == (48 if name == "random" else 3 * (mipc or 16) + 6)
    assert count["save"] == 6
