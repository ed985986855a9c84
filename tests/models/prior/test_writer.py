"""What is written is opened by diffusers' stock classes and by `load_prior`, with the same weights."""

import json

import diffusers
import pytest
import torch
from tiny_networks import tiny_autoencoder, tiny_dit, tiny_unet

from raydd.models.prior.pipeline import load_prior
from raydd.models.prior.writer import read_facts, write_pipeline

SCHEDULER = {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction", "clip_sample": True}
NAMES = ("a", "b", "c")


def write(out, net, autoencoder=None):
    write_pipeline(str(out), net, SCHEDULER, autoencoder=autoencoder, classes=NAMES, facts={"source": "f00"})
    return load_prior(str(out), classes=("c", "a"))


def same_weights(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_a_unet_in_pixels(tmp_path):
    net = tiny_unet(num_class_embeds=4)
    prior = write(tmp_path, net)
    pipe = diffusers.DDPMPipeline.from_pretrained(tmp_path, use_safetensors=True)
    assert same_weights(pipe.unet, net) and same_weights(prior.net, net)
    assert pipe.scheduler.config.prediction_type == "v_prediction"
    assert (prior.null, prior.num_classes, prior.labels.tolist(), prior.table.clip) == (3, 3, [2, 0], 1.0)
    facts = read_facts(str(tmp_path))
    assert facts["classes"] == list(NAMES) and facts["source"] == "f00"
    (tmp_path / "model_index.json").unlink()
    assert read_facts(str(tmp_path)) is None


@pytest.mark.parametrize("kind", ["AutoencoderKL", "VQModel"])
def test_a_unet_over_an_autoencoder(tmp_path, kind):
    net, autoencoder = tiny_unet(in_channels=4, out_channels=4, num_class_embeds=4), tiny_autoencoder(kind)
    prior = write(tmp_path, net, autoencoder)
    pipe = diffusers.DiffusionPipeline.from_pretrained(tmp_path, use_safetensors=True)
    assert type(pipe).__name__ == "LDMPipeline"
    assert same_weights(pipe.vqvae, autoencoder) and same_weights(prior.space.net, autoencoder)


def test_a_dit_over_an_autoencoder(tmp_path):
    net, autoencoder = tiny_dit(4), tiny_autoencoder()
    prior = write(tmp_path, net, autoencoder)
    pipe = diffusers.DiTPipeline.from_pretrained(tmp_path, use_safetensors=True)
    assert same_weights(pipe.transformer, net) and same_weights(pipe.vae, autoencoder)
    assert pipe.labels == {"a": 0, "b": 1, "c": 2}
    assert prior.labels.tolist() == [2, 0] and prior.image_size == 16


def test_a_dit_in_pixels(tmp_path):
    net = diffusers.DiTTransformer2DModel(
        num_attention_heads=1, attention_head_dim=8, in_channels=1, num_layers=1, sample_size=8, num_embeds_ada_norm=3
    )
    prior = write(tmp_path, net)
    assert prior.latent_shape == (1, 8, 8) and prior.guidable
    loaded = diffusers.DiTTransformer2DModel.from_pretrained(tmp_path, subfolder="transformer", use_safetensors=True)
    assert same_weights(loaded, net)
    assert json.loads((tmp_path / "model_index.json").read_text())["vae"] == [None, None]
    assert diffusers.DiTPipeline.from_pretrained(tmp_path, vae=None, use_safetensors=True).vae is None
