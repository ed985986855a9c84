"""Every row of evaluation.md section 2: epochs, batch, optimizer, schedule, augmentation and loss, by IPC."""

import pytest

from raydd.errors import UserError
from raydd.evaluate.protocols import PROTOCOLS, resolve
from raydd.train.protocol import Augmentation


def plan(name, ipc=10, classes=10, size=224, **options):
    return resolve(name, num_classes=classes, ipc=ipc, image_size=size, **options)


def rate(protocol, epoch):
    return protocol.schedule.factor(epoch, protocol.epochs)


def test_names():
    required = "soft rded hard glad dsco_hard dsco_soft dsco_in1k fkd rethink_soft rethink_hard rd3 quick quick_soft"
    assert {*required.split(), "infoutil", "dsco_cifar"} == set(PROTOCOLS)
    with pytest.raises(UserError, match="did you mean 'hard'"):
        plan("hrad")
    hashes = {plan(name).hash for name in (*PROTOCOLS, "noaug:hard", "noaug:soft")}
    assert len(hashes) == len(PROTOCOLS) + 2


@pytest.mark.parametrize(
    ("ipc", "classes", "size", "arch", "batch"),
    [
        (1, 10, 224, "", 10),
        (10, 10, 224, "", 50),
        (50, 10, 224, "", 100),
        (20, 10, 224, "", 100),
        (5, 10, 224, "", 50),
        (1, 100, 224, "", 20),
        (10, 100, 32, "resnet18_cifar", 100),
        (50, 1000, 224, "", 200),
        (1, 200, 64, "", 100),
        (50, 200, 64, "", 100),
        (10, 100, 32, "convnet3", 25),
        (1, 4, 32, "", 4),
    ],
)
def test_rded_batch(ipc, classes, size, arch, batch):
    for name in ("soft", "rded", "infoutil"):
        assert plan(name, ipc, classes, size, arch=arch).batch == batch


def test_soft_and_rded():
    soft, rded = plan("soft", factor=2), plan("rded", factor=2)
    assert (soft.optimizer, soft.lr, soft.weight_decay, soft.wd_on_matrices_only) == ("adamw", 1e-3, 0.01, True)
    assert (soft.epochs, soft.loss, soft.temperature, soft.labels, soft.norm) == (300, "kl", 20.0, "soft", "batch")
    assert soft.augmentation == Augmentation(tiles=2, crop_area=(0.5, 1.0), flip=True, cutmix=1.0)
    assert 0.5 < rate(soft, 299) < 0.51
    found = [soft.lr_for(a) for a in ("torchvision/mobilenet_v2", "efficientnet_b0", "vgg11_dd", "swin_v2_t", "vit_dd")]
    assert found == [2.5e-3, 2e-3, 5e-4, 1e-4, 1e-4] and soft.lr_for("alexnet_dd") == 1e-4
    assert plan("soft", classes=100, size=32, arch="convnet3").lr == 2e-3
    assert rded.double_bn_update and not soft.double_bn_update
    assert rded.check_steps(300) == (250, 260, 270, 280, 290, 300)
    assert plan("soft", factor=1, size=32).augmentation.crop_area == (1.0, 1.0)
    assert plan("infoutil").augmentation.autoaugment and not soft.augmentation.autoaugment


@pytest.mark.parametrize(("size", "side"), [(224, 256), (128, 144), (64, 72), (32, 32), (8, 8)])
def test_test_transform(size, side):
    assert plan("soft", size=size).test_resize == side
    assert plan("hard", size=size).test_resize == size
    assert plan("dsco_hard", size=size).test_resize == side


@pytest.mark.parametrize(
    ("ipc", "ten", "hundred"),
    [
        (1, 3000, 2000),
        (10, 2000, 1300),
        (11, 1500, 1000),
        (50, 1500, 1000),
        (200, 1000, 600),
        (500, 500, 300),
        (501, 300, 200),
    ],
)
def test_hard_epochs(ipc, ten, hundred):
    assert (plan("hard", ipc).epochs, plan("hard", ipc, 100).epochs) == (ten, hundred)
    assert plan("quick", ipc).epochs == ten // 10
    assert plan("dsco_hard", ipc).epochs == plan("dsco_cifar", ipc).epochs == ten


def test_epochs_follow_the_final_set():
    """Doped sets train by their final size, except `dsco_soft`, which goes by the synthetic IPC."""
    assert plan("hard", 10, n_images=500).epochs == 1500
    assert plan("hard", 10, n_images=101).epochs == 1500
    assert plan("soft", 10, n_images=500).batch == 100
    assert plan("dsco_soft", 100, n_images=13000).epochs == 1000


def test_hard():
    hard, many = plan("hard"), plan("hard", classes=1000)
    assert (hard.optimizer, hard.lr, hard.momentum, hard.weight_decay, hard.batch) == ("sgd", 0.01, 0.9, 5e-4, 64)
    assert (many.lr, many.weight_decay, many.batch) == (0.1, 1e-4, 128)
    assert plan("hard", classes=100).lr == 0.01
    assert (hard.loss, hard.labels, hard.norm) == ("ce", "hard", "instance")
    expected = Augmentation(crop_area=(0.5, 1.0), flip=True, jitter=(0.4, 0.4, 0.4), lighting=0.1, cutmix=1.0)
    assert hard.augmentation == expected
    assert [round(rate(hard, e), 6) for e in (0, 1332, 1333, 1666, 1999)] == [1, 1, 0.2, 0.04, 0.04]


def test_glad():
    glad = plan("glad", size=128)
    assert (glad.optimizer, glad.weight_decay, glad.epochs, glad.batch, glad.ema) == ("sgd", 5e-4, 1000, 256, 0.995)
    assert (glad.lr_for("convnet5"), glad.lr_for("vgg11_dd"), glad.norm) == (1e-3, 1e-4, "instance")
    assert glad.augmentation == Augmentation(dsa="one")
    assert (rate(glad, 0), rate(glad, 500)) == (1e-7, 1)


def test_dsco():
    hard, soft = plan("dsco_hard"), plan("dsco_soft")
    assert (hard.optimizer, hard.lr, hard.weight_decay, hard.batch) == ("adamw", 1e-3, 0.01, 64)
    assert hard.augmentation == soft.augmentation == plan("hard").augmentation
    assert hard.schedule == plan("hard").schedule and rate(soft, 1999) == pytest.approx(0.5, abs=1e-3)
    assert (soft.loss, soft.temperature, soft.labels, hard.loss) == ("kl", 20.0, "soft", "ce")
    assert plan("dsco_hard", 100).check_steps(1000)[:2] == (676, 686) and hard.checks[-1] == 1
    cifar = plan("dsco_cifar", size=32)
    assert cifar.augmentation == Augmentation(dsa="all", cutmix=0.5) and rate(cifar, 1999) == pytest.approx(0.01)


@pytest.mark.parametrize(("ipc", "batch", "epochs"), [(10, 100, 300), (50, 200, 300), (200, 200, 100)])
def test_dsco_in1k(ipc, batch, epochs):
    large = plan("dsco_in1k", ipc, 1000)
    assert (large.batch, large.epochs, large.augmentation.tiles) == (batch, epochs, 1)
    assert large.augmentation == Augmentation(crop_area=(0.5, 1.0), flip=True, cutmix=1.0)


def test_fkd_and_rethink():
    fkd, soft, hard = plan("fkd"), plan("rethink_soft"), plan("rethink_hard")
    assert (fkd.batch, fkd.accumulate, soft.batch, hard.batch) == (1024, 2, 128, 128)
    assert fkd.augmentation == soft.augmentation == Augmentation(crop_area=(0.08, 1.0), flip=True, cutmix=1.0)
    assert hard.augmentation == Augmentation(crop_area=(0.08, 1.0), flip=True)
    assert (fkd.loss, soft.loss, hard.loss, hard.labels) == ("kl", "kl", "ce", "hard")
    assert all(rate(p, 299) < 1e-4 and p.epochs == 300 and not p.wd_on_matrices_only for p in (fkd, soft, hard))


def test_rd3():
    assert (plan("rd3").epochs, plan("rd3").batch) == (400, 50)
    assert rate(plan("rd3", arch="resnet18"), 399) < 1e-4
    assert rate(plan("rd3", arch="convnet3"), 399) > 0.5


def test_noaug_changes_augmentation_only():
    plain, hard = plan("noaug:hard"), plan("hard")
    assert plain.augmentation == Augmentation() and plain.name == "noaug:hard"
    assert (plain.epochs, plain.batch, plain.schedule) == (hard.epochs, hard.batch, hard.schedule)


def test_precision_is_part_of_the_hash():
    assert plan("soft").hash != plan("soft", precision="bf16").hash
