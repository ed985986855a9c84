"""Unpacked attention is the same function of the same parameters, also inside torch's encoder layer."""

import copy

import pytest
import torch
from torch import nn

from raydd.score.attention import LinearAttention, is_plain, unpack_attention


def tokens() -> torch.Tensor:
    return torch.randn(3, 5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("bias", [True, False])
def test_same_function_and_shared_parameters(bias):
    packed = nn.MultiheadAttention(8, 2, bias=bias, batch_first=True).double().eval()
    unpacked, x = LinearAttention(packed), tokens()
    torch.testing.assert_close(unpacked(x, x, x)[0], packed(x, x, x)[0])
    assert {id(p) for p in unpacked.parameters()} == {id(p) for p in packed.parameters()}


def test_encoder_layer_runs_the_unpacked_projections():
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).double().eval()
    unpacked, calls = copy.deepcopy(model), []
    unpack_attention(unpacked)
    unpacked.self_attn.qkv.register_forward_hook(lambda *_: calls.append(1))
    torch.testing.assert_close(unpacked(tokens()), model(tokens()))
    assert calls == [1]


def test_what_it_cannot_stand_for_is_left_or_refused():
    assert not is_plain(nn.MultiheadAttention(8, 2, batch_first=False))
    assert not is_plain(nn.MultiheadAttention(8, 2, batch_first=True, kdim=4))
    assert not is_plain(nn.MultiheadAttention(8, 2, batch_first=True, add_bias_kv=True))
    unpacked, x = LinearAttention(nn.MultiheadAttention(8, 2, batch_first=True).double()), tokens()
    with pytest.raises(NotImplementedError):
        unpacked(x, x + 1, x)
    with pytest.raises(NotImplementedError):
        unpacked(x, x, x, key_padding_mask=torch.zeros(3, 5, dtype=torch.bool))
