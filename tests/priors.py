"""Tiny real diffusers pipelines with random weights, for tests of what draws from a prior."""

from pathlib import Path

import torch


def write_tiny_prior(out: Path, classes: tuple[str, ...] | None, size: int = 16) -> str:
    """A pixel-space UNet for one grey channel and `size` px, class-conditional with a null label if `classes`."""
    from diffusers import UNet2DModel

    from raydd.models.prior.writer import write_pipeline

    torch.manual_seed(0)
    net = UNet2DModel(
        sample_size=size,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        num_class_embeds=None if classes is None else len(classes) + 1,
    )
    schedule = {"num_train_timesteps": 100, "beta_schedule": "linear", "clip_sample": True}
    facts = {} if classes is None else {"null_label": len(classes)}
    write_pipeline(str(out), net, schedule, autoencoder=None, classes=classes or (), facts=facts)
    return str(out)
