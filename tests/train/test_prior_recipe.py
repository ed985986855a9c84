"""Presets are complete, and options replace single values."""

import diffusers
import pytest

from raydd.errors import UserError
from raydd.models.prior.networks import build_denoiser
from raydd.train.prior_recipe import PRESETS, preset


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets(name):
    recipe = preset(name)
    recipe.check()
    assert recipe.preset == name
    scheduler = diffusers.DDPMScheduler(**recipe.scheduler())
    assert scheduler.config.clip_sample is not recipe.latent
    factor = 8 if recipe.latent else 1
    if name in ("tiny", "small"):
        build_denoiser(recipe.shape, channels=1, size=recipe.image_size // factor, num_classes=10, seed=0)


def test_sizes_of_the_transformers_are_the_papers():
    shapes = {name: preset(name).shape for name in ("dit-s", "dit-b")}
    assert {name: (s.depth, 64 * s.heads, s.patch) for name, s in shapes.items()} == {
        "dit-s": (12, 384, 2),
        "dit-b": (12, 768, 2),
    }


def test_changes():
    assert preset("tiny", steps=7, lr=None).steps == 7 and preset("tiny", lr=None).lr == PRESETS["tiny"].lr
    for changes, message in (({"steps": 0}, "--steps 0"), ({"image_size": 0}, "--size 0"), ({"lr": -1.0}, "--lr -1")):
        with pytest.raises(UserError, match=message):
            preset("tiny", **changes)
    with pytest.raises(UserError, match="unknown preset 'tin': did you mean 'tiny'"):
        preset("tin")
