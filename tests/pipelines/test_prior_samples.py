"""The control `prior`: each image is drawn by (seed, class, index), whatever IPC and batch."""

import pytest
from priors import write_tiny_prior

from raydd.errors import UserError
from raydd.pipelines.distill import DistillOptions, distill
from raydd.pipelines.prior_samples import PriorConfig, PriorSamples
from raydd.runtime.work import Resources
from raydd.store import distilled
from raydd.store.run import Run

LOCAL = Resources(executor="local")
METHOD = PriorSamples("prior", PriorConfig(steps=3, guidance=2.0))


def images(tree, tmp_path, name, **changes):
    prior = write_tiny_prior(tmp_path / f"prior-{name}", ("0", "1", "2"))
    out = str(tmp_path / name)
    distill(DistillOptions(data=str(tree), out=out, prior=prior, **changes), METHOD, LOCAL)
    return [image.data for image in distilled.read_class(Run(out), 2)]


def test_an_image_does_not_depend_on_how_many_there_are(tree, tmp_path):
    few, many = images(tree, tmp_path, "few", ipc=2), images(tree, tmp_path, "many", ipc=4)
    assert many[:2] == few and len(set(many)) == 4
    assert images(tree, tmp_path, "other", ipc=2, seed=1) != few


@pytest.mark.parametrize("changes", [{"steps": 0}, {"eta": 2.0}, {"guidance": -1.0}, {"labels": "soft"}])
def test_options_out_of_range_are_refused(changes):
    with pytest.raises(UserError):
        PriorConfig(**changes).check()
