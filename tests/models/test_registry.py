"""Networks by name have the published parameter counts and shapes, one initialization per seed, and the norm asked for;
misuse is one line with a remedy."""

import pytest
import torch
from torch import nn

from raydd.errors import UserError
from raydd.keyed import torch_rng
from raydd.models.registry import (
    ARCHS,
    build_model,
    check_fits,
    classifier_layer,
    default_students,
    effective_norm,
    resolve_arch,
)

# ConvNet-D: 3584 + (D - 1) 147584 + D 256 + (128 s s + 1) 10 by hand; ResNets as published for 10 classes (the CIFAR
# ones: .27, .46 and .85 million); 4.9 million for ResNetAP-10.
COUNTS = [
    ("convnet3", 32, 320_010),
    ("convnet4", 64, 467_850),
    ("convnet5", 128, 615_690),
    ("convnet6", 256, 3_584 + 5 * 147_584 + 6 * 256 + 20_490),
    ("resnet18", 64, 11_181_642),
    ("resnet18_cifar", 32, 11_173_962),
    ("resnetap10", 224, 4_910_922),
    ("cifar_resnet20", 32, 269_722),
    ("cifar_resnet32", 32, 464_154),
    ("cifar_resnet56", 32, 853_018),
    ("alexnet_dd", 32, 1_872_202),
    ("vgg11_dd", 32, 9_231_114),
]


@pytest.mark.parametrize(("arch", "image_size", "count"), COUNTS)
@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_parameter_counts(arch, image_size, count, norm):
    model = build_model(arch, num_classes=10, image_size=image_size, norm=norm)
    assert sum(p.numel() for p in model.parameters()) == count


@pytest.mark.parametrize("arch", ARCHS)
def test_every_network_maps_images_to_logits(arch):
    model = build_model(arch, num_classes=7, image_size=64).eval()
    with torch.no_grad():
        assert model(torch.zeros(2, 3, 64, 64)).shape == (2, 7)


@pytest.mark.parametrize("arch", ["convnet3", "resnet18_cifar", "resnetap10", "cifar_resnet20", "mobilenet_v2"])
@pytest.mark.parametrize("norm", ["instance", "group", "layer", "none"])
def test_norm_reaches_every_layer(arch, norm):
    model = build_model(arch, num_classes=3, image_size=32, norm=norm)
    kinds = {type(m) for m in model.modules()}
    groups = {m.num_groups == m.num_channels for m in model.modules() if isinstance(m, nn.GroupNorm)}
    assert nn.BatchNorm2d not in kinds
    assert groups == {"instance": {True}, "group": {False}, "layer": {False}, "none": set()}[norm]


def test_instance_norm_removes_a_channels_offset_and_scale():
    model = build_model("convnet3", num_classes=3, image_size=16, norm="instance").eval()
    images = torch.randn(2, 3, 16, 16)
    block = model.features[0]
    scaled = block[1](block[0](images) * 7 + 3)
    assert torch.allclose(scaled, block[1](block[0](images)), atol=1e-3)


def test_equal_seeds_equal_parameters_and_the_global_generator_is_left_alone():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = build_model("convnet3", num_classes=4, image_size=16, seed=5).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    second = build_model("convnet3", num_classes=4, image_size=16, seed=5).state_dict()
    other = build_model("convnet3", num_classes=4, image_size=16, seed=6).state_dict()
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert not torch.equal(first["classifier.weight"], other["classifier.weight"])


def test_width():
    assert build_model("convnet3", num_classes=2, image_size=32, width=16).classifier.in_features == 16 * 16
    with pytest.raises(UserError, match="fixed width"):
        build_model("resnet18", num_classes=2, image_size=32, width=8)


def test_a_convnets_width_by_name():
    named = build_model("convnet3w16", num_classes=2, image_size=32)
    assert named.classifier.in_features == 16 * 16
    assert build_model("convnet3w16", num_classes=2, image_size=32, width=16).classifier.in_features == 16 * 16
    with pytest.raises(UserError, match="convnet3w16 has width 16 by its name, not 8"):
        build_model("convnet3w16", num_classes=2, image_size=32, width=8)
    # One network, one name: its students share initialization and a place in the table.
    assert resolve_arch("convnet3w128") == "convnet3" and resolve_arch("convnet3w16") == "convnet3w16"
    plain, wide = (
        build_model(name, num_classes=2, image_size=32).state_dict() for name in ("convnet3", "convnet3w128")
    )
    assert all(torch.equal(plain[k], wide[k]) for k in plain)
    for wrong in ("convnet3w0", "convnet3w", "convnet0w8", "torchvision/convnet3"):
        with pytest.raises(UserError):
            resolve_arch(wrong)


def test_small_stem_keeps_resolution():
    model = build_model("resnet18_cifar", num_classes=2, image_size=32)
    assert model.maxpool(model.conv1(torch.zeros(1, 3, 32, 32))).shape == (1, 64, 32, 32)


def test_pooling_network_has_no_strided_convolution():
    model = build_model("resnetap10", num_classes=2, image_size=64)
    assert {m.stride for m in model.modules() if isinstance(m, nn.Conv2d)} == {(1, 1)}


def test_option_a_shortcut_is_subsampling_with_zero_channels():
    block = build_model("cifar_resnet20", num_classes=2, image_size=32).layer2[0].eval()
    nn.init.zeros_(block.conv2.weight)  # leaves the shortcut alone: batch norm of zeros is zero
    x = torch.rand(1, 16, 8, 8)
    y = block(x)
    assert torch.equal(y[:, 8:24], x[:, :, ::2, ::2])
    assert not y[:, :8].any() and not y[:, 24:].any()


def test_vit_tokens_and_optional_layer_norm():
    plain = build_model("vit_dd", num_classes=2, image_size=128, width=16)
    assert plain.embed.stride == (16, 16) and plain.positions.shape == (1, 65, 16)
    assert not any(isinstance(m, nn.LayerNorm) for m in plain.modules())
    normed = build_model("vit_dd", num_classes=2, image_size=128, width=16, norm="layer")
    assert sum(isinstance(m, nn.LayerNorm) for m in normed.modules()) == 21


def test_names():
    assert resolve_arch("torchvision/resnet18") == "resnet18"
    assert resolve_arch("mobilenet_v2") == resolve_arch("torchvision/mobilenet_v2") == "torchvision/mobilenet_v2"
    assert resolve_arch("convnet2") == "convnet2"
    with pytest.raises(UserError, match="did you mean 'convnet3'"):
        resolve_arch("convnet_3")
    with pytest.raises(UserError, match="did you mean 'resnet50'"):
        resolve_arch("torchvision/resnet5O")


@pytest.mark.parametrize(
    ("arch", "wish", "built"),
    [
        ("convnet3", None, "batch"),
        ("resnet18", "instance", "instance"),
        ("alexnet_dd", "instance", "none"),
        ("vit_dd", "instance", "none"),
        ("mobilenet_v2", None, "own"),
    ],
)
def test_effective_norm(arch, wish, built):
    assert effective_norm(arch, wish) == built


def test_too_small_images_are_refused_with_a_remedy():
    with pytest.raises(UserError, match="choose convnet3"):
        build_model("convnet5", num_classes=2, image_size=8)
    build_model("convnet3", num_classes=2, image_size=8)
    for arch in ("alexnet_dd", "resnetap10", "vgg11_dd"):
        with pytest.raises(UserError, match="at least"):
            build_model(arch, num_classes=2, image_size=4)


@pytest.mark.parametrize(
    ("arch", "size", "norm", "message"),
    [
        ("resnet18", 32, "instance", "larger images than 32 px.*choose convnet3 or resnet18_cifar"),
        ("torchvision/mobilenet_v2", 28, "instance", "larger images than 28 px"),
        ("torchvision/vgg11_bn", 16, "batch", "does not take images of 16 px"),
        ("convnet5", 16, "instance", "halves the image 5 times"),
    ],
)
def test_a_network_that_would_learn_nothing_is_refused(arch, size, norm, message):
    with pytest.raises(UserError, match=message) as error:
        check_fits(arch, num_classes=10, image_size=size, norm=norm)
    assert "\n" not in str(error.value)


def test_instance_norm_of_single_pixels_is_blind():
    """What `check_fits` is for: no error, and the same logits for every image, rounding apart."""

    def spread(size: int) -> float:
        net = build_model("resnet18", num_classes=10, image_size=size, norm="instance").eval()
        with torch.no_grad():
            return float(net(torch.randn(8, 3, size, size, generator=torch_rng("blind"))).std(0).mean())

    assert spread(32) < 0.01 * spread(64)


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_networks_that_fit_are_taken(norm):
    for size in (16, 32, 64, 128, 256):
        for arch in default_students(size):
            check_fits(arch, num_classes=10, image_size=size, norm=norm)
    check_fits("resnet18", num_classes=10, image_size=32, norm="batch")


def test_default_students_follow_the_image_size():
    assert default_students(32) == ["convnet3", "resnet18_cifar"]
    assert default_students(64) == ["convnet4", "resnet18_cifar"]
    assert default_students(128) == ["convnet5", "resnet18"]
    assert default_students(224) == ["convnet6", "resnetap10", "resnet18"]


def test_classifier_layer_is_the_one_that_yields_the_logits():
    for arch, name in (("convnet3", "classifier"), ("mobilenet_v2", "classifier.1"), ("squeezenet1_0", "classifier.1")):
        found, layer = classifier_layer(build_model(arch, num_classes=5, image_size=64))
        assert found == name and layer.weight.shape[0] == 5
