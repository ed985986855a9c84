"""`train_prior` on real digits: what it writes opens, survives a kill with the same weights, never mixes recipes."""

import dataclasses
import io

import diffusers
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from raydd.errors import UserError
from raydd.models.prior.networks import DiTShape, UNetShape
from raydd.models.prior.pipeline import load_prior
from raydd.models.prior.step import sample
from raydd.train import prior as module
from raydd.train.prior import discard, train_prior
from raydd.train.prior_recipe import preset

NAMES = ("zero", "one", "two")
RECIPE = preset("tiny", shape=UNetShape((8, 8)), image_size=8, steps=6, batch=8)


@pytest.fixture(scope="module")
def digits():
    data = load_digits(n_class=3)
    images = torch.from_numpy(data.images / 16 * 255).round().to(torch.uint8)[:, None].repeat(1, 3, 1, 1)
    return images[:200], torch.from_numpy(data.target)[:200], NAMES


class Killed(Exception):
    pass


def weights(out):
    return load_prior(str(out)).net.state_dict()


def test_a_kill_changes_nothing(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SAVE_S", 0.0)
    seen = []
    facts = train_prior(*digits, RECIPE, str(tmp_path / "a"), source="f00", progress=seen.append)
    assert [f["step"] for f in seen] == [1, 2, 3, 4, 5, 6]
    assert (facts["source"], facts["image_size"], facts["recipe"]["images"]) == ("f00", 8, 200)

    def kill(facts):
        if facts["step"] == 4:
            raise Killed

    out = tmp_path / "b"
    with pytest.raises(Killed):
        train_prior(*digits, RECIPE, str(out), source="f00", progress=kill)
    assert (out / "resume.safetensors").exists() and not (out / "model_index.json").exists()
    with pytest.raises(UserError, match="half-done training of another recipe"):
        train_prior(*digits, dataclasses.replace(RECIPE, seed=1), str(out), source="f00")
    again = []
    train_prior(*digits, RECIPE, str(out), source="f00", progress=again.append)
    assert [f["step"] for f in again] == [4, 5, 6] and not (out / "resume.safetensors").exists()
    assert all(torch.equal(a, b) for a, b in zip(weights(tmp_path / "a").values(), weights(out).values()))
    assert load_prior(str(out)).hash == load_prior(str(tmp_path / "a")).hash


def test_what_is_written_opens(digits, tmp_path):
    train_prior(*digits, RECIPE, str(tmp_path))
    prior = load_prior(str(tmp_path), classes=("two", "zero"))
    assert prior.latent_shape == (1, 8, 8) and prior.guidable and prior.labels.tolist() == [2, 0]
    drawn = prior.decode(sample(prior, torch.tensor([0, 1]), [(0,), (1,)], steps=3, guidance=1.5))
    assert drawn.shape == (2, 3, 8, 8) and torch.equal(drawn[:, 0], drawn[:, 2])
    assert diffusers.DDPMPipeline.from_pretrained(tmp_path, use_safetensors=True).unet.config.num_class_embeds == 4
    grid = Image.open(io.BytesIO((tmp_path / "samples" / "step-0000006.png").read_bytes()))
    assert grid.size == (3 * 8, module.GRID_ROWS * 8)


def test_the_same_call_again_and_another_recipe(digits, tmp_path):
    first = train_prior(*digits, RECIPE, str(tmp_path))
    before = (tmp_path / "unet" / "config.json").stat().st_mtime_ns
    again = train_prior(*digits, RECIPE, str(tmp_path))
    assert again["recipe"] == first["recipe"] and (tmp_path / "unet" / "config.json").stat().st_mtime_ns == before
    with pytest.raises(UserError, match=r"prior of another recipe \(lr: 0.002 -> 0.1\)"):
        train_prior(*digits, dataclasses.replace(RECIPE, lr=0.1), str(tmp_path))
    discard(str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_over_an_autoencoder(digits, tmp_path):
    torch.manual_seed(0)
    autoencoder = diffusers.AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        latent_channels=2,
    )
    autoencoder.save_pretrained(tmp_path / "vae")
    recipe = dataclasses.replace(RECIPE, shape=DiTShape(depth=1, heads=1), latent=True, flip=True, steps=2)
    train_prior(*digits, recipe, str(tmp_path / "p"), autoencoder=str(tmp_path / "vae"))
    pipe = diffusers.DiTPipeline.from_pretrained(tmp_path / "p", use_safetensors=True)
    assert pipe.labels == {"zero": 0, "one": 1, "two": 2} and pipe.scheduler.config.clip_sample is False
    prior = load_prior(str(tmp_path / "p"))
    assert prior.latent_shape == (2, 4, 4) and prior.image_size == 8
    assert prior.encode(digits[0][:2]).shape == (2, 2, 4, 4)


def test_it_learns(digits, tmp_path):
    """The loss falls, and the mean sample of a class is nearest to its own mean image."""
    recipe = dataclasses.replace(RECIPE, shape=UNetShape((16, 16)), steps=40, batch=16, lr=8e-3)
    seen = []
    train_prior(*digits, recipe, str(tmp_path), progress=seen.append)
    assert sum(facts["loss"] for facts in seen[-5:]) / 5 < 0.6 * seen[0]["loss"]
    prior = load_prior(str(tmp_path))
    labels = torch.arange(3).repeat_interleave(4)
    latents = sample(prior, labels, [("t", i) for i in range(12)], steps=8, guidance=2.0, eta=0.0)
    drawn = prior.decode(latents)[:, 0].float().view(3, 4, 64).mean(1)
    means = torch.stack([digits[0][digits[1] == k][:, 0].float().mean(0).flatten() for k in range(3)])
    assert torch.cdist(drawn, means).argmin(1).tolist() == [0, 1, 2]


def test_what_does_not_fit(digits, tmp_path):
    images, labels, names = digits
    with pytest.raises(UserError, match="the recipe works at 16 px"):
        train_prior(*digits, dataclasses.replace(RECIPE, image_size=16), str(tmp_path))
    with pytest.raises(UserError, match="there are 2 class names"):
        train_prior(images, labels, names[:2], RECIPE, str(tmp_path))
    with pytest.raises(ValueError, match="expected uint8"):
        train_prior(images.float(), labels, names, RECIPE, str(tmp_path))
    with pytest.raises(UserError, match="no autoencoder at"):
        train_prior(*digits, RECIPE, str(tmp_path), autoencoder=str(tmp_path))
