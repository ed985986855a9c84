"""`load_prior` over pipelines that diffusers wrote: diffusers' own numbers, and one line for what is not served."""

import json
import os
import shutil

import diffusers
import pytest
import torch
from tiny_networks import tiny_autoencoder, tiny_unet

from raydd.errors import UserError
from raydd.models.prior.opened import OpenedPrior
from raydd.models.prior.pipeline import load_autoencoder, load_prior
from raydd.models.prior.step import posterior, sample

NAMES = ("tench, Tinca tinca", "springer", "crane")


def edited(directory, tmp_path, name="model_index.json", **changes) -> str:
    """A copy of a pipeline with some entries of one JSON file replaced."""
    out = shutil.copytree(directory, tmp_path / "copy")
    content = json.loads((out / name).read_text()) | changes
    (out / name).write_text(json.dumps(content))
    return str(out)


def test_a_dit_pipeline(dit_directory):
    prior = load_prior(dit_directory)
    assert prior.latent_shape == (4, 8, 8) and prior.image_size == 16
    assert (prior.classes, prior.num_classes, prior.null, prior.guidable) == (NAMES, 3, 3, True)
    assert not any(p.requires_grad for p in prior.net.parameters())
    schedule = prior.schedule(50)
    assert schedule.timesteps[[0, -1]].tolist() == [0, 999]


def test_guided_steps_equal_the_dit_pipeline(dit_directory):
    """The stock pipeline's own loop; its null label is 1000, so that the null pass is taken from the network here."""
    pipe = diffusers.DiTPipeline.from_pretrained(dit_directory, use_safetensors=True)
    prior = load_prior(dit_directory, spacing="leading")
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([2, 0])
    schedule = prior.schedule(10)
    pipe.scheduler.set_timesteps(10)
    own = theirs = x
    with torch.no_grad():
        for i, t in zip(reversed(range(10)), pipe.scheduler.timesteps):
            times = t.expand(2)
            given, free = (
                pipe.transformer(theirs, timestep=times, class_labels=y).sample for y in (labels, torch.tensor([3, 3]))
            )
            mixed = free[:, :4] + 2.5 * (given[:, :4] - free[:, :4])
            theirs = pipe.scheduler.step(mixed, t, theirs).prev_sample
            prediction = prior.denoise(own, schedule, i, labels, 2.5)
            assert torch.allclose(prediction.variance, given[:, 4:], atol=1e-4)
            own, std = posterior(prediction, schedule, i, eta=0.0)
            assert std == 0
    assert (own - theirs).abs().max() < 1e-3 * theirs.abs().max()
    with torch.no_grad():
        picture = (pipe.vae.decode(theirs / 0.2 + 0.1).sample / 2 + 0.5).clamp(0, 1)
    assert (prior.decode(theirs).float() / 255 - picture).abs().max() <= 0.51 / 255


def test_first3_leaves_the_last_channel_unguided(dit_directory):
    every, three = (load_prior(dit_directory, guidance_channels=kind) for kind in ("all", "first3"))
    x, labels, schedule = torch.randn(1, 4, 8, 8), torch.tensor([1]), every.schedule(10)
    plain, a, b = (p.denoise(x, schedule, 4, labels, g).noise for p, g in ((every, 1), (every, 3.0), (three, 3.0)))
    assert torch.equal(a[:, :3], b[:, :3])
    assert torch.allclose(b[:, 3], plain[:, 3], atol=1e-5) and not torch.allclose(a[:, 3], plain[:, 3], atol=1e-3)


def test_guidance_1_takes_one_pass_and_gradients_reach_the_input(dit_directory, monkeypatch):
    prior = load_prior(dit_directory)
    sizes, forward = [], prior.net.forward
    monkeypatch.setattr(prior.net, "forward", lambda x, *a, **k: sizes.append(len(x)) or forward(x, *a, **k))
    x = torch.randn(2, 4, 8, 8, requires_grad=True)
    prior.denoise(x, prior.schedule(5), 2, torch.tensor([0, 1])).clean.sum().backward()
    assert sizes == [2] and x.grad.abs().sum() > 0
    prior.denoise(x, prior.schedule(5), 2, torch.tensor([0, 1]), 2.0)
    assert sizes == [2, 4]


def test_labels_of_the_source_are_translated(dit_directory):
    prior = load_prior(dit_directory)
    seen = load_prior(dit_directory, classes=("crane", "tench"))
    assert seen.classes == ("crane", "tench") and seen.num_classes == 3
    x, schedule = torch.randn(2, 4, 8, 8), prior.schedule(5)
    a = prior.denoise(x, schedule, 3, torch.tensor([2, 0]))
    b = seen.denoise(x, schedule, 3, torch.tensor([0, 1]))
    assert torch.equal(a.clean, b.clean)
    assert seen.hash != prior.hash
    assert load_prior(dit_directory, classes=("x",), class_map={"x": 2}).labels.tolist() == [2]
    with pytest.raises(ValueError, match="one label for each of 2 images"):
        prior.denoise(x, schedule, 3, None)


def test_an_unconditional_unet_in_pixels(unet_directory):
    prior = load_prior(unet_directory, classes=("a", "b"))
    assert prior.latent_shape == (3, 8, 8) and prior.image_size == 8
    assert (prior.classes, prior.num_classes, prior.guidable) == (None, None, False)
    schedule = prior.schedule(10)
    out = prior.denoise(torch.randn(2, 3, 8, 8), schedule, 9, None)
    assert out.clean.abs().max() <= 1 and out.variance is None
    with pytest.raises(UserError, match="unconditional: use --guidance 1"):
        prior.denoise(torch.randn(2, 3, 8, 8), schedule, 9, None, 2.0)
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    assert torch.equal(prior.decode(prior.encode(images)), images)
    with pytest.raises(UserError, match=r"images of 9 x 9 px for a prior of 8 px"):
        prior.encode(torch.zeros(1, 3, 9, 9, dtype=torch.uint8))
    assert sample(prior, None, [(1,), (2,)], steps=3).isfinite().all()


def test_a_conditional_unet_over_a_vq_autoencoder(tmp_path):
    net = tiny_unet(in_channels=4, out_channels=4, num_class_embeds=3)
    diffusers.DDPMPipeline(net, diffusers.DDPMScheduler()).save_pretrained(tmp_path)
    tiny_autoencoder("VQModel").save_pretrained(tmp_path / "vqvae")
    directory = edited(tmp_path, tmp_path / "x", vqvae=["diffusers", "VQModel"])
    prior = load_prior(directory, classes=("a", "b", "c"))
    assert prior.latent_shape == (4, 8, 8) and prior.image_size == 16 and not prior.guidable
    with pytest.raises(UserError, match="without a null label"):
        prior.denoise(torch.zeros(1, 4, 8, 8), prior.schedule(3), 1, torch.tensor([0]), 2.0)
    with pytest.raises(UserError, match="3 labels without names but the source has 2 classes"):
        load_prior(directory, classes=("a", "b"))


def test_the_hash_survives_copying_and_tells_weights_apart(unet_directory, tmp_path):
    first = load_prior(unet_directory)
    copy = str(shutil.copytree(unet_directory, tmp_path / "copy"))
    os.utime(f"{copy}/unet/config.json", (0, 0))
    assert load_prior(copy).hash == first.hash != load_prior(copy, spacing="trailing").hash
    net = tiny_unet()
    net.save_pretrained(f"{copy}/unet")
    assert load_prior(copy).hash != first.hash


def test_a_prior_at_a_uri(unet_directory):
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.put(unet_directory, "/prior-uri", recursive=True)
    assert load_prior("memory://prior-uri").hash == load_prior(unet_directory).hash


def test_bf16_gives_fp32_results(unet_directory):
    prior, half = load_prior(unet_directory), load_prior(unet_directory, precision="bf16")
    x, schedule = torch.randn(1, 3, 8, 8), prior.schedule(10)
    a, b = (p.denoise(x, schedule, 5, None).noise for p in (prior, half))
    assert b.dtype == torch.float32 and 0 < (a - b).abs().max() < 0.1


def test_what_is_refused(dit_directory, unet_directory, tmp_path, monkeypatch):
    cases = {
        "too small for 64 px": lambda p: load_prior(dit_directory, size=64),
        "knows no class 'dodo'": lambda p: load_prior(dit_directory, classes=("dodo",)),
        "UNet2DConditionModel as its unet": lambda p: load_prior(
            edited(unet_directory, p, unet=["diffusers", "UNet2DConditionModel"])
        ),
        "AsymmetricAutoencoderKL as its vae": lambda p: load_prior(
            edited(dit_directory, p, vae=["diffusers", "AsymmetricAutoencoderKL"])
        ),
        "without a transformer or unet": lambda p: load_prior(edited(unet_directory, p, unet=[None, None])),
        "takes 3 channels and gives 3, but its autoencoder has 4": lambda p: load_prior(mixed(p)),
        "embeds classes as 'timestep'": lambda p: load_prior(timestep(p)),
        "lacks class_embedding.weight and 0 more": lambda p: load_prior(
            edited(unet_directory, p, "unet/config.json", num_class_embeds=3)
        ),
        "no safetensors file": lambda p: load_prior(pickled(p)),
        "has no model_index.json": lambda p: load_prior(f"{dit_directory}/vae"),
        "no prior at ./nothing": lambda p: load_prior("./nothing"),
    }

    def mixed(p):
        out = edited(unet_directory, p, vae=["diffusers", "AutoencoderKL"])
        shutil.copytree(f"{dit_directory}/vae", f"{out}/vae")
        return out

    def timestep(p):
        out = edited(unet_directory, p)
        tiny_unet(class_embed_type="timestep").save_pretrained(f"{out}/unet")
        return out

    def pickled(p):
        out = edited(unet_directory, p)
        os.rename(f"{out}/unet/diffusion_pytorch_model.safetensors", f"{out}/unet/diffusion_pytorch_model.bin")
        return out

    for number, (message, call) in enumerate(cases.items()):
        with pytest.raises(UserError) as caught:
            call(tmp_path / str(number))
        assert message in str(caught.value) and "\n" not in str(caught.value)


def test_the_hub_that_does_not_answer(monkeypatch):
    import huggingface_hub

    def offline(name, **kinds):
        assert kinds["allow_patterns"] == ["*.json", "*.safetensors"]
        raise OSError("no\nroute")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(UserError, match=r"'org/prior' is no directory here, and the hub did not give it \(no route\)"):
        load_prior("org/prior")


def test_an_autoencoder_by_itself(dit_directory, unet_directory, tmp_path):
    whole, alone = load_autoencoder(dit_directory), load_autoencoder(f"{dit_directory}/vae")
    assert (alone.channels, alone.factor, alone.scale, alone.shift) == (4, 2, 0.2, 0.1) and whole.hash
    for bad in (unet_directory, f"{unet_directory}/unet"):
        with pytest.raises(UserError, match=r"no autoencoder at|holds a UNet2DModel"):
            load_autoencoder(bad)
    assert isinstance(load_prior(dit_directory), OpenedPrior)
