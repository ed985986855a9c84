"""AutoAugment (arXiv 1805.09501) with drawn parameters; InfoUtil's student protocol adds it to RDED's.

torchvision supplies the ImageNet policy and the operations; which sub-policy an image gets, with which coins and signs,
comes from our uniforms. The paper names no policy; ImageNet's is used (ours).
Limits: one image at a time (about 0.3 ms at 32 px), and `patch` labels do not see the geometric operations.
"""

import functools
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from raydd.models.torchvisions import torchvision_models

COLUMNS = 5


@functools.cache
def _policy() -> Callable[[Tensor, np.ndarray], Tensor]:
    torchvision_models()  # makes the import below possible beside a torch of another build
    from torchvision.transforms import AutoAugment

    class Drawn(AutoAugment):
        """AutoAugment whose sub-policy, two coins and two signs are given with the image."""

        def __call__(self, image: Tensor, uniform: np.ndarray) -> Tensor:
            self.uniform = torch.from_numpy(uniform)
            return self.forward(image)

        def get_params(self, transform_num: int) -> tuple[int, Tensor, Tensor]:
            return int(self.uniform[0] * transform_num), self.uniform[1:3], (self.uniform[3:5] < 0.5).long()

    return Drawn()


def autoaugment(images: Tensor, uniform: np.ndarray) -> Tensor:
    """Apply one sub-policy per image; uint8 [B, 3, S, S] and uniforms in [0, 1) float64 [B, 5]."""
    policy = _policy()
    return torch.stack([policy(image, row) for image, row in zip(images, uniform)])
