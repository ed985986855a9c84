"""Requests become jobs with every default resolved, or are refused before anything is written."""

import pytest

from raydd.errors import UserError
from raydd.models.checkpoint import read_info
from raydd.pipelines.request import DistillOptions, chosen_classes, open_job


def request(tmp_path, **changes) -> DistillOptions:
    return DistillOptions(**({"data": "digits", "out": str(tmp_path / "run")} | changes))


def test_size_and_normalization_come_from_the_teacher(tmp_path, digits_teacher):
    job = open_job(request(tmp_path, teacher=digits_teacher))
    info = read_info(f"{digits_teacher}/teacher.json")
    assert job.size == 16 and job.normalization == {"mean": list(info.mean), "std": list(info.std)}
    assert job.data == "digits" and job.classes == tuple("0123456789")
    assert not (tmp_path / "run").exists()


def test_without_a_teacher_a_size_is_needed(tmp_path):
    with pytest.raises(UserError, match="no --size and no --teacher"):
        open_job(request(tmp_path))
    assert open_job(request(tmp_path, size=8)).teacher is None


@pytest.mark.parametrize(("changes", "message"), [({"size": 0}, "--size 0"), ({"batch": 0, "size": 8}, "--batch 0")])
def test_numbers_out_of_range(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        open_job(request(tmp_path, **changes))


def test_classes_by_name():
    assert chosen_classes(None, ("ant", "bee", "cat")) == [0, 1, 2]
    assert chosen_classes("cat, ant,cat", ("ant", "bee", "cat")) == [0, 2]
    with pytest.raises(UserError, match="unknown class 'can': did you mean 'cat'"):
        chosen_classes("can", ("ant", "bee", "cat"))
