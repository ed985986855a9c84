"""A small autoencoder for `train-prior --autoencoder`, where none of the domain's is at hand.

    python benchmarks/autoencoder.py --data SRC --out DIR [--size 32] [--steps 800]

diffusers' AutoencoderKL (arXiv 2112.10752) from scratch, 4 channels at a quarter of the side: absolute error, plus a
faint pull of the posterior to N(0, 1). Its scaling factor is set afterwards, so that latents of the training images
have a deviation of 1. There is no adversarial or perceptual loss, so fine texture is lost; it is meant for small
and simple images, where a CPU trains it in minutes. Ends with one JSON line; `psnr`, in dB, is of validation images.
"""

import argparse
import json
import math
import time

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from raydd.data.source import open_source
from raydd.data.tensors import load_images
from raydd.keyed import torch_rng
from raydd.train.classifier import lr_factor

WIDTHS = (16, 32, 64)
CHANNELS = 4
KL_WEIGHT = 1e-5  # per latent number, beside an error per pixel
CHECKED = 1000  # images that the scale, and the error, are measured on


def main() -> None:
    """Train, measure, write."""
    args = parse()
    torch.set_num_threads(args.threads)
    images = load_images(open_source(args.data, "train"), args.size).images
    seen = load_images(open_source(args.data, "val"), args.size).images[:CHECKED]
    torch.manual_seed(args.seed)
    net = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(WIDTHS),
        up_block_types=("UpDecoderBlock2D",) * len(WIDTHS),
        block_out_channels=WIDTHS,
        latent_channels=CHANNELS,
        norm_num_groups=8,
        sample_size=args.size,
        mid_block_add_attention=False,
    )
    began = time.perf_counter()
    train(net, images, args)
    seconds = time.perf_counter() - began
    net.eval()
    scale = 1 / latents(net, images[torch.randperm(len(images), generator=torch_rng("scale"))[:CHECKED]]).std().item()
    net.register_to_config(scaling_factor=scale)
    net.save_pretrained(args.out)
    facts = {
        "steps": args.steps,
        "seconds": round(seconds),
        "scale": round(scale, 4),
        "psnr": round(psnr(net, seen), 2),
    }
    print(json.dumps(facts))


def train(net: AutoencoderKL, images: Tensor, args: argparse.Namespace) -> None:
    """AdamW with a cosine to zero; which images and which noise are keyed by the step."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=args.lr, weight_decay=0.0)
    for step in range(args.steps):
        rng = torch_rng("autoencoder", args.seed, step)
        batch = scaled(images[torch.randint(len(images), (args.batch,), generator=rng)])
        known = net.encode(batch).latent_dist
        drawn = known.mean + known.std * torch.randn(known.mean.shape, generator=rng)
        loss = F.l1_loss(net.decode(drawn).sample, batch) + KL_WEIGHT * known.kl().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = args.lr * lr_factor("cosine", step, args.steps)
        optimizer.step()
        if step % 100 == 0:
            print(f"step {step}: {loss.item():.4f}", flush=True)


def scaled(images: Tensor) -> Tensor:
    """uint8 [n,3,S,S] to fp32 in [-1, 1]."""
    return images.float() / 127.5 - 1


@torch.inference_mode()
def latents(net: AutoencoderKL, images: Tensor) -> Tensor:
    """Means of the posterior, before scaling."""
    return torch.cat([net.encode(scaled(part)).latent_dist.mean for part in images.split(50)])


@torch.inference_mode()
def psnr(net: AutoencoderKL, images: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of images coded and decoded, over all pixels."""
    parts = images.split(50)
    errors = [F.mse_loss(net.decode(latents(net, part)).sample.clamp(-1, 1), scaled(part)) for part in parts]
    return 10 * math.log10(4 * len(parts) / sum(errors).item())


def parse() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="source")
    parser.add_argument("--out", required=True, help="directory for the autoencoder")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
