"""torchvision's classifiers are reachable, whichever build of torch is beside it."""

from raydd.models.torchvisions import torchvision_models, torchvision_names


def test_classifiers_by_name():
    assert {"resnet18", "mobilenet_v2", "vit_b_16"} <= set(torchvision_names())
    assert callable(torchvision_models().resnet18)
