"""Latents to distilled images: decoded, made smaller where asked for, never larger."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from priors import write_tiny_prior

from raydd.distill.output import OutputConfig
from raydd.errors import UserError
from raydd.pipelines.request import DistillOptions, open_job
from raydd.pipelines.synthetic import check_prior, open_prior, to_images


@pytest.fixture
def job(tree, tmp_path):
    prior = write_tiny_prior(tmp_path / "prior", ("0", "1", "2"))
    return lambda **changes: open_job(DistillOptions(data=str(tree), out=str(tmp_path / "run"), prior=prior, **changes))


@pytest.mark.parametrize("size", [16, 8])
def test_images_have_the_jobs_size_and_the_latents_pixels(job, size):
    asked = job(size=size)
    levels = torch.tensor([-1.0, 0.0, 0.5, 3.0])
    latents = levels.view(4, 1, 1, 1).expand(4, 1, 16, 16)
    images = to_images(open_prior(asked, "cpu"), latents, asked, OutputConfig(codec="png"), None)
    pixels = [np.asarray(Image.open(io.BytesIO(image.data))) for image in images]
    assert [picture.shape for picture in pixels] == [(size, size, 3)] * 4
    assert [int(picture.min()) for picture in pixels] == [int(picture.max()) for picture in pixels]
    assert [int(picture[0, 0, 0]) for picture in pixels] == [0, 128, 191, 255]
    assert {image.origin for image in images} == {"synthetic"} and images[0].source_keys == ()


def test_the_prior_decides_size_and_what_guidance_is_possible(job):
    assert job().size == 16
    assert check_prior("dsco", job(), 4.0, chooses_class=True).guidable
    with pytest.raises(UserError, match="--ipc 0"):
        check_prior("dsco", job(ipc=0), 1.0, chooses_class=True)
