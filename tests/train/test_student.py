"""The student loop: the loss by hand, learning on digits, chance with permuted labels, same seed same curve, resume
after a kill, several processes, and what a result counts."""

import dataclasses
import math

import pytest
import torch
import torch.multiprocessing as mp
from safetensors.torch import load, save
from sklearn.datasets import load_digits

from raydd.errors import UserError
from raydd.evaluate.labels import HardLabels, SingleLabels
from raydd.evaluate.protocols import resolve
from raydd.models.normalization import Normalization
from raydd.train.snapshot import read_record
from raydd.train.student import Snapshots, TrainSet, ValSet, loss_of, train_student

NORM = Normalization((0.3,) * 3, (0.38,) * 3)
TRAIN = 600


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def digits():
    data = load_digits()
    images = torch.from_numpy((data.images * 255 / 16).round().astype("uint8"))[:, None].repeat(1, 3, 1, 1)
    return images, torch.from_numpy(data.target).long()


def sets(count=TRAIN):
    images, labels = digits()
    return TrainSet(images[:count], labels[:count], [f"{i:05d}" for i in range(count)]), ValSet(
        images[1200:], labels[1200:]
    )


def protocol(name="noaug:hard", **changes):
    plan = resolve(name, num_classes=10, ipc=60, image_size=8)
    return dataclasses.replace(plan, **changes) if changes else plan


def student(train, val, plan, *, seed=0, labels=None, **options):
    labels = labels or HardLabels(train, 10)
    return train_student(
        train, val, plan, "convnet1", seed, num_classes=10, normalization=NORM, labels=labels, **options
    )


def test_kl_by_hand_has_batch_mean_and_no_t_squared():
    z, t, temperature = torch.tensor([[2.0, -4.0]]), torch.tensor([[0.75, 0.25]]), 20.0
    p = math.exp(2 / 20) / (math.exp(2 / 20) + math.exp(-4 / 20))
    expected = 0.75 * math.log(0.75 / p) + 0.25 * math.log(0.25 / (1 - p))
    assert loss_of(z, t, "kl", temperature).item() == pytest.approx(expected, rel=1e-5)
    assert loss_of(z, torch.tensor([[1.0, 0.0]]), "kl", 20.0).item() == pytest.approx(-math.log(p), rel=1e-5)


def test_cross_entropy_of_mixed_labels_is_the_mixed_cross_entropy():
    z = torch.randn(3, 5)
    a, b = torch.tensor([0, 1, 2]), torch.tensor([4, 3, 2])
    mixed = 0.3 * torch.nn.functional.one_hot(a, 5) + 0.7 * torch.nn.functional.one_hot(b, 5)
    ce = torch.nn.functional.cross_entropy
    assert torch.allclose(
        loss_of(z, mixed, "ce", 1.0), 0.3 * ce(z, a, reduction="none") + 0.7 * ce(z, b, reduction="none")
    )


def test_learns_digits():
    result = student(*sets(), protocol(), steps=60)
    assert result.last > 0.85 and result.top5 > 0.95 and result.best >= result.last
    assert [s for s, _ in result.curve] == [12, 24, 36, 48, 60] and result.curve[-1][1] == result.last
    assert (result.steps, result.teacher_forwards, len(result.per_class)) == (60, 0, 10)
    # An epoch of 600 images is ten batches of at most 64.
    assert result.images_seen == 3600 and result.device == "cpu"


@pytest.mark.parametrize("name", ["hard", "glad", "dsco_hard", "dsco_cifar", "rethink_hard"])
def test_every_hard_protocol_runs(name):
    result = student(*sets(80), protocol(name), steps=3)
    assert 0 <= result.last <= 1 and result.steps == 3


def test_the_trained_network_is_handed_out_as_it_was_tested():
    train, val = sets(100)
    for ema in (0.0, 0.5):
        kept = []
        plan = protocol(epochs=2, ema=ema)
        result = student(train, val, plan, keep=kept.append)
        net = kept[0].eval()
        with torch.no_grad():
            hits = (net(NORM.apply(val.images)).argmax(1) == val.labels).float().mean()
        assert hits.item() == pytest.approx(result.last)


def test_permuted_labels_give_chance():
    train, val = sets()
    train.labels = train.labels[torch.randperm(TRAIN, generator=torch.Generator().manual_seed(0))]
    assert abs(student(train, val, protocol(), steps=40).last - 0.1) < 0.12


def test_same_seed_same_curve_and_the_global_generator_rests():
    before = torch.get_rng_state()
    plan = protocol("hard")
    first, second, other = (student(*sets(100), plan, seed=s, steps=6) for s in (0, 0, 1))
    assert first.curve == second.curve and first.curve != other.curve
    assert torch.equal(before, torch.get_rng_state())


def test_equal_steps_for_unequal_sets():
    small, large = (student(*sets(n), protocol(), steps=10) for n in (64, 500))
    assert small.steps == large.steps == 10 and small.images_seen == 640
    assert student(*sets(64), protocol(epochs=7)).steps == 7


def test_soft_labels_are_followed():
    """One-hot teachers at the temperature's scale teach the classes, shifted ones the shifted classes."""
    train, val = sets()
    plan = dataclasses.replace(protocol("noaug:soft"), checks=(1.0,))
    for shift in (0, 1):
        train.soft_labels = 400 * torch.nn.functional.one_hot((train.labels + shift) % 10, 10).float()[:, None]
        moved = ValSet(val.images, (val.labels + shift) % 10)
        assert student(train, moved, plan, labels=SingleLabels(train), steps=40).last > 0.7


def test_label_regime_must_fit():
    with pytest.raises(UserError, match="needs soft labels"):
        student(*sets(20), protocol("soft"), steps=1)


class Killed(Exception):
    pass


@pytest.mark.parametrize("name", ["hard", "glad", "dsco_hard"])
def test_resume_after_a_kill_ends_at_the_same_number(name):
    """Killed at any step, also several times, and continued from what safetensors kept."""
    train, val = sets(90)
    plan = dataclasses.replace(protocol(name), checks=(0.25, 0.5, 0.75, 1.0))
    whole = student(train, val, plan, steps=8)
    kept = {}

    def killed_after(saves):
        countdown = iter(range(saves - 1, -1, -1))

        def save_then_die(tensors):
            kept["file"] = save(tensors)
            if next(countdown) == 0:
                raise Killed

        return Snapshots(lambda: load(kept["file"]) if kept else None, save_then_die, every_s=0)

    for saves in (3, 2):
        with pytest.raises(Killed):
            student(train, val, plan, steps=8, state=killed_after(saves))
    assert read_record(load(kept["file"]))["step"] == 5
    resumed = student(train, val, plan, steps=8, state=Snapshots(lambda: load(kept["file"]), lambda _: None))
    assert resumed.curve == whole.curve and resumed.per_class == whole.per_class
    assert resumed.images_seen == whole.images_seen


def test_a_snapshot_of_another_job_is_ignored():
    train, val = sets(70)
    kept = []
    student(train, val, protocol(), seed=1, steps=4, state=Snapshots(lambda: None, kept.append, every_s=0))
    assert len(kept) == 3
    fresh = student(train, val, protocol(), seed=0, steps=4)
    assert student(train, val, protocol(), seed=0, steps=4, state=Snapshots(lambda: kept[-1], kept.append)).curve == (
        fresh.curve
    )


def test_accumulation_changes_rounding_only():
    """Instance norm has no batch statistics, so two half batches give the whole batch's gradient."""
    plans = [protocol("hard", accumulate=n, checks=(1.0,)) for n in (1, 3)]
    first, second = (student(*sets(100), plan, steps=4) for plan in plans)
    assert first.last == pytest.approx(second.last, abs=5e-3)


def test_progress_reports_checks():
    seen = []
    student(*sets(64), protocol(), steps=60, progress=lambda *facts: seen.append(facts))
    assert [s for s, _, accuracy in seen if accuracy is not None] == [12, 24, 36, 48, 60]
    assert (50, 60, None) in seen


def test_bf16_is_close_to_fp32():
    first, second = (student(*sets(), protocol(precision=p), steps=40).last for p in ("fp32", "bf16"))
    assert abs(first - second) < 0.04


def worker(rank, world, path, queue):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=world)
    result = student(*sets(101), protocol("hard"), steps=6, rank=rank, world=world)
    queue.put((rank, result.curve, result.images_seen))
    torch.distributed.destroy_process_group()


def test_two_processes_equal_one(tmp_path):
    """Batches of 64 and 37 images, the second of which does not divide by two."""
    context = mp.get_context("spawn")
    queue = context.Queue()
    processes = [context.Process(target=worker, args=(r, 2, tmp_path / "store", queue)) for r in range(2)]
    for process in processes:
        process.start()
    results = dict((rank, rest) for rank, *rest in (queue.get(timeout=180) for _ in processes))
    for process in processes:
        process.join()
    whole = student(*sets(101), protocol("hard"), steps=6)
    assert results[0] == results[1] and results[0][1] == whole.images_seen
    for (step, accuracy), (expected_step, expected) in zip(results[0][0], whole.curve):
        assert step == expected_step and accuracy == pytest.approx(expected, abs=2e-3)
