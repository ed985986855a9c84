"""Networks of diffusers with a few thousand random weights."""

import diffusers


def tiny_autoencoder(kind: str = "AutoencoderKL", widths=(8, 16), channels: int = 4):
    if kind == "AutoencoderTiny":
        shape = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8), "scaling_factor": 2.0}
        shape |= {"num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1)}
        return diffusers.AutoencoderTiny(latent_channels=channels, **shape)
    types = {
        "down_block_types": ("DownEncoderBlock2D",) * len(widths),
        "up_block_types": ("UpDecoderBlock2D",) * len(widths),
    }
    shape = {"block_out_channels": widths, "norm_num_groups": 4, "latent_channels": channels, "sample_size": 16}
    if kind == "VQModel":
        return diffusers.VQModel(num_vq_embeddings=32, vq_embed_dim=channels, **types, **shape)
    return diffusers.AutoencoderKL(scaling_factor=0.2, shift_factor=0.1, **types, **shape)


def tiny_dit(out_channels: int = 8, layers: int = 1):
    net = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=out_channels,
        num_layers=layers,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=3,
        norm_num_groups=4,
    )
    return net.eval()


def tiny_unet(**changes):
    shape = {
        "sample_size": 8,
        "in_channels": 3,
        "out_channels": 3,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "down_block_types": ("DownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D"),
    }
    return diffusers.UNet2DModel(**(shape | changes)).eval()
