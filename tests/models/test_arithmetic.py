import pytest
import torch

from raydd.models.arithmetic import native_bf16


@pytest.mark.parametrize("native", [True, False])
def test_each_kind_of_device_is_asked_itself(native, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: native)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: not native)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    assert native_bf16("cuda:1") is native and native_bf16(torch.device("cpu")) is not native


def test_a_build_without_onednn_and_other_devices_are_taken_not_to_have_it(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not native_bf16("cpu") and not native_bf16("meta")
