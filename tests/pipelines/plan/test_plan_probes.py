"""A probe does what it stands for: as many rows of the operation as it says, counted while it runs."""

import pytest
from pipelines.plan.plan_counter import counting, planned, work_of
from pipelines.small_ld3m import method as ld3m
from pipelines.small_ld3m import options as ld3m_options
from priors import write_tiny_prior

from raydd.distill.controls import ControlConfig
from raydd.distill.dsco.config import DscoConfig
from raydd.distill.infoutil.config import CropConfig, InfoUtilConfig, SelectConfig
from raydd.pipelines.controls import Control
from raydd.pipelines.distill import DistillOptions
from raydd.pipelines.dsco import Dsco
from raydd.pipelines.infoutil import InfoUtil
from raydd.pipelines.plan.bench import Bench
from raydd.pipelines.plan.calibrate import PROBES
from raydd.pipelines.plan.cost import KINDS

# What is seen of a row of an operation; the others are seen as their own kind.
SEEN = {
    "target": ("feature",),
    "nopt": ("feature", "feature_back"),
    "nopt_free": ("map",),
    "denoise_back": ("denoise", "denoise_back"),
    "paint_back": ("paint",),
    "match": ("classified",),
    "match_real": ("classified",),
    "match_held": ("classified",),
    "game": ("classified",),
    "teacher": ("classified",),
    "gradnorm": ("classified",),
}
# Encoded and clustered are no network's; nets that are made see nothing.
UNSEEN = ("save", "cut", "choose", "match_net")


@pytest.fixture(scope="module")
def prior(tmp_path_factory) -> str:
    return write_tiny_prior(tmp_path_factory.mktemp("prior"), ("0", "1", "2"), 8)


def checked(options, method) -> set[str]:
    """Run every probe of a plan on six rows, after once on others; the kinds that were."""
    found = planned(options, method)
    bench, kinds = Bench(found.prepared.job, method, "cpu"), set()
    for op in work_of(found):
        run = PROBES[op.kind](bench, op)
        run(6)
        with counting() as seen:
            count = run(6)
        kinds.add(op.kind)
        assert count >= 6 or op.kind == "read"
        if op.kind == "read":
            assert seen[f"read {op.of}"] == count > 0
        elif op.kind == "student":
            # Each step is taken forward, and gone back over.
            assert seen["classified"] == 2 * count
        elif op.kind == "student_held":
            assert seen["classified"] == count
        elif op.kind not in UNSEEN:
            assert {kind: seen[kind] for kind in SEEN.get(op.kind, (op.kind,))} == dict.fromkeys(
                SEEN.get(op.kind, (op.kind,)), count
            ), op
    return kinds


def test_probes_of_noise_optimization(digits_tree, tmp_path, prior):
    asked = DistillOptions(data=str(digits_tree), out=str(tmp_path), prior=prior, ipc=6)
    kinds = checked(asked, Dsco("dsco", DscoConfig(steps=3, iterations=2, rounds=2)))
    assert kinds == {"read", "encode", "denoise", "paint", "target", "feature", "nopt", "save"}
    free = DscoConfig(steps=3, iterations=2, access="free", templates=3, optimizer="sgd")
    assert checked(asked, Dsco("dsco-free", free)) == {"denoise", "paint", "map", "nopt_free", "save"}


def test_probes_of_scores(digits_tree, tmp_path, digits_teacher):
    asked = DistillOptions(data=str(digits_tree), out=str(tmp_path), teacher=digits_teacher, ipc=2)
    config = InfoUtilConfig(crop=CropConfig(estimator="windows"), select=SelectConfig(mipc=10))
    assert checked(asked, InfoUtil("infoutil", config)) == {"read", "game", "cut", "teacher", "gradnorm", "save"}
    assert checked(asked, Control("kmeans", ControlConfig())) == {"read", "teacher", "choose", "save"}


@pytest.mark.parametrize("loss", ["dm", "dc", "mtt"])
def test_probes_of_learning(digits_tree, tmp_path, small_prior, small_experts, loss):
    changes = {"experts": small_experts} if loss == "mtt" else {"loss": loss}
    kinds = checked(ld3m_options(digits_tree, tmp_path, small_prior), ld3m(**changes))
    own = {"dm": {"match_net", "match_real", "match", "match_held"}, "dc": {"match_net", "match", "match_held"}}
    chain = {"read", "encode", "denoise", "denoise_back", "paint", "paint_back", "save"}
    assert kinds == chain | own.get(loss, {"student", "student_held"})


def test_every_kind_has_a_probe():
    assert PROBES.keys() == KINDS.keys()
