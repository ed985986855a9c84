"""Our draws reach torchvision's operations: same draws, same image; each image has its own; pixels stay uint8."""

import numpy as np
import torch

from raydd.augment.autoaugment import autoaugment
from raydd.models.torchvisions import torchvision_models


def test_known_sub_policies():
    """Sub-policy 13 of 25 is (invert .6, equalize 1); with coins .5 and .5 both are applied."""
    torchvision_models()
    from torchvision.transforms.functional import equalize, invert

    image = torch.randint(0, 200, (1, 3, 16, 16), dtype=torch.uint8)
    assert torch.equal(autoaugment(image, np.array([[13.5 / 25, 0.5, 0.5, 0.1, 0.1]]))[0], equalize(invert(image[0])))
    assert torch.equal(autoaugment(image, np.array([[13.5 / 25, 0.7, 0.5, 0.1, 0.1]]))[0], equalize(image[0]))


def test_image_depends_on_its_own_row_only():
    rng = np.random.default_rng(0)
    images, uniform = torch.randint(0, 256, (12, 3, 16, 16), dtype=torch.uint8), rng.random((12, 5))
    together = autoaugment(images, uniform)
    assert together.dtype == torch.uint8 and not torch.equal(together, images)
    for i in (0, 5, 11):
        assert torch.equal(autoaugment(images[i : i + 1], uniform[i : i + 1])[0], together[i])
