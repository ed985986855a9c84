"""Tiny pipelines with random weights, written by diffusers itself."""

import json

import diffusers
import pytest
import torch
from tiny_networks import tiny_autoencoder, tiny_dit, tiny_unet

NAMES = {0: "tench, Tinca tinca", 1: "springer", 2: "crane"}


@pytest.fixture(scope="session")
def dit_directory(tmp_path_factory) -> str:
    """A DiTPipeline: 16 px, latents 4x8x8, three classes, learned-range variance."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("dit")
    scheduler = diffusers.DDIMScheduler(clip_sample=False, set_alpha_to_one=True)
    diffusers.DiTPipeline(tiny_dit(), tiny_autoencoder(), scheduler).save_pretrained(folder)
    # As in facebook/DiT-XL-2-256; the pipeline does not register the names it is given.
    path = folder / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"id2label": NAMES}))
    return str(folder)


@pytest.fixture(scope="session")
def unet_directory(tmp_path_factory) -> str:
    """A DDPMPipeline without conditioning: pixels, 8 px, clipping."""
    torch.manual_seed(1)
    folder = str(tmp_path_factory.mktemp("unet"))
    scheduler = diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2", clip_sample=True)
    diffusers.DDPMPipeline(tiny_unet(), scheduler).save_pretrained(folder)
    return folder
