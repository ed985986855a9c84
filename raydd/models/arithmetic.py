"""Which arithmetic a device is fast in."""

import torch


def native_bf16(device: str | torch.device) -> bool:
    """Whether torch says that a CUDA device, or oneDNN on a CPU, has bfloat16; False for other devices.

    A CPU with AVX2 alone emulates it: convolutions took 4 to 9 times as long as in fp32.
    """
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.cuda.is_bf16_supported()
    return kind == "cpu" and torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
