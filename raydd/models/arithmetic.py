"""Which arithmetic a device is fast in."""

import torch


def native_bf16(device: str | torch.device) -> bool:
    """Whether a device computes in bfloat16 itself: CUDA from Ampere on, and CPUs whose oneDNN has it.

    Others emulate it: convolutions took 4 to 9 times as long as in fp32 on a CPU with AVX2 alone.
    """
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.cuda.is_bf16_supported()
    return kind == "cpu" and torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
