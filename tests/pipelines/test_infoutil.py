"""InfoUtil as a method: its checks, its candidates, and what its selection is worth on the digits."""

from statistics import mean

import pytest

from raydd.distill.candidates import candidates
from raydd.distill.controls import ControlConfig
from raydd.distill.infoutil.config import CropConfig, InfoUtilConfig, SelectConfig, fast, random_windows
from raydd.errors import UserError
from raydd.pipelines.controls import Control
from raydd.pipelines.distill import DistillOptions, distill_many
from raydd.pipelines.evaluate import evaluate
from raydd.pipelines.evaluate_request import EvaluateOptions
from raydd.pipelines.infoutil import InfoUtil
from raydd.pipelines.request import open_job
from raydd.runtime.work import Resources


def job_of(tmp_path, teacher, data="digits", **changes):
    return open_job(DistillOptions(data=str(data), out=str(tmp_path / "run"), teacher=teacher, size=16, **changes))


def test_it_needs_a_teacher(tmp_path):
    with pytest.raises(UserError, match="infoutil needs a teacher: add --teacher DIR"):
        InfoUtil("infoutil", InfoUtilConfig()).check(job_of(tmp_path, None))


def test_counts_are_of_tiles(tmp_path, digits_teacher, tree):
    job = job_of(tmp_path, digits_teacher, tree, ipc=5)
    InfoUtil("infoutil", InfoUtilConfig()).check(job)
    with pytest.raises(UserError, match=r"--ipc 5 needs 20 source images .* use --ipc 4 or less, or --factor 1"):
        InfoUtil("infoutil", InfoUtilConfig(select=SelectConfig(factor=2))).check(job)


def test_bare_tiles_need_a_teacher_with_global_pooling(tmp_path, digits_teacher):
    """The ConvNet's classifier is as wide as its last map, so it cannot look at a crop."""
    method = InfoUtil("infoutil-fast", InfoUtilConfig(crop=fast().crop, select=SelectConfig(factor=2)))
    with pytest.raises(UserError, match="convnet3 cannot look at bare tiles of 8 px"):
        method.check(job_of(tmp_path, digits_teacher))
    InfoUtil("infoutil-fast", fast()).check(job_of(tmp_path, digits_teacher))


def test_only_candidates_are_scored_and_the_table_ignores_what_is_selected(tmp_path, digits_teacher):
    job = job_of(tmp_path, digits_teacher, ipc=2)
    scoring = InfoUtil("infoutil", InfoUtilConfig(select=SelectConfig(mipc=20))).scoring(job)
    wanted = {key for i, name in enumerate(job.classes) for key in candidates(job.keys(i), name, 20, 0)}
    assert scoring.keys == wanted and len(wanted) == 200
    other = InfoUtil("other", InfoUtilConfig(select=SelectConfig(mipc=20, direction="bottom", labels="hard")))
    assert other.scoring(job).config == scoring.config
    noisier = InfoUtil("infoutil", InfoUtilConfig(crop=CropConfig(alpha=3), select=SelectConfig(mipc=20)))
    assert noisier.scoring(job).config != scoring.config


def test_selection_is_worth_something(tmp_path, digits_teacher):
    """Three students each, IPC 10, 30 epochs; noise between single ones is about 3 points, and differs by processor.

    Digits are hard on the paper's choice: half of a digit is another digit, and high gradient norms are wrong guesses.
    With whole images and low norms the selection is not below random; with windows, not below unselected windows.
    """
    low = {"direction": "bottom"}
    methods = {
        "random": Control("random", ControlConfig()),
        "low-norm": InfoUtil("infoutil", InfoUtilConfig(crop=CropConfig(pool=4), select=SelectConfig(**low))),
        "windows": InfoUtil("random-windows", random_windows()),
        "low-norm-windows": InfoUtil(
            "infoutil", InfoUtilConfig(crop=CropConfig(estimator="windows"), select=SelectConfig(**low))
        ),
    }
    local = Resources(executor="local")
    requests = [
        (DistillOptions(data="digits", out=str(tmp_path / name), teacher=digits_teacher, ipc=10), method)
        for name, method in methods.items()
    ]
    distill_many(requests, local)
    runs = tuple(request.out for request, _ in requests)
    judge = EvaluateOptions(run=runs, val="digits", students="convnet3", protocol="soft@30", seeds=3, flip=False)
    last = dict(zip(methods, (mean(seed.last for seed in evaluation.seeds) for evaluation in evaluate(judge, local))))
    assert last["low-norm"] > last["random"] - 0.03
    assert last["low-norm-windows"] > last["windows"] - 0.03
    assert min(last.values()) > 0.4
