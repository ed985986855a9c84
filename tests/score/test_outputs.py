"""Cheap scores against autograd and plain formulas; the last Linear layer is found by running the network."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from raydd.errors import UserError
from raydd.score.outputs import Outputs, final_linear, margin, require_eval


class Net(nn.Module):
    """Declares its classifier first and uses its only other Linear before it."""

    def __init__(self, bias: bool = True):
        super().__init__()
        self.classifier = nn.Linear(7, 4, bias=bias)
        self.hidden = nn.Linear(12, 7)
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        return self.classifier(self.drop(F.relu(self.hidden(x.flatten(1)))))


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(5, 3, 2, 2, generator=generator), torch.tensor([0, 1, 2, 3, 0])


@pytest.mark.parametrize("bias", [True, False])
def test_last_layer_norm_is_the_gradient_of_that_layer(bias):
    model, (x, y) = Net(bias).eval(), batch()
    found = Outputs(model)(x, y)["gradnorm_last"]
    for i in range(len(x)):
        loss = F.cross_entropy(model(x[i : i + 1]), y[i : i + 1])
        gradients = torch.autograd.grad(loss, list(model.classifier.parameters()))
        norm = torch.sqrt(sum(g.square().sum() for g in gradients))
        assert found[i].item() == pytest.approx(norm.item(), rel=1e-5)


def test_scores_follow_their_formulas():
    model, (x, y) = Net().eval(), batch()
    out = Outputs(model)(x, y)
    logits = model(x).detach()
    torch.testing.assert_close(out["logits"], logits)
    torch.testing.assert_close(out["features"], F.relu(model.hidden(x.flatten(1))).detach())
    for i, label in enumerate(y.tolist()):
        error = logits[i].softmax(0)
        loss = -error[label].log()
        error[label] -= 1
        others = [logits[i, k] for k in range(4) if k != label]
        assert out["el2n"][i].item() == pytest.approx(error.norm().item(), rel=1e-5)
        assert out["loss"][i].item() == pytest.approx(loss.item(), rel=1e-5)
        assert out["margin"][i].item() == pytest.approx((logits[i, label] - max(others)).item(), rel=1e-5)


def test_outputs_are_float32_without_graph_and_leave_no_hooks():
    model, (x, y) = Net().eval(), batch()
    out = Outputs(model)(x, y)
    assert all(v.dtype == torch.float32 and not v.requires_grad for v in out.values())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_final_linear_goes_by_execution_order():
    model, (x, _) = Net().eval(), batch()
    assert final_linear(model, x) is model.classifier


def test_network_without_a_final_linear_is_refused():
    model = nn.Sequential(nn.Linear(2, 2), nn.Conv2d(3, 5, 2), nn.Flatten())
    with pytest.raises(UserError, match="Linear"):
        final_linear(model.eval(), batch()[0])


@pytest.mark.parametrize("layer", [nn.Dropout(), nn.BatchNorm2d(3)])
def test_training_mode_is_refused(layer):
    model = nn.Sequential(layer, nn.Flatten(), nn.Linear(12, 4))
    with pytest.raises(ValueError, match="eval"):
        Outputs(model)(*batch())
    require_eval(model.eval())


def test_margin_sign_tells_correct_from_wrong():
    logits = torch.tensor([[3.0, 1.0, 2.5], [0.0, 5.0, 4.0]])
    torch.testing.assert_close(margin(logits, torch.tensor([0, 2])), torch.tensor([0.5, -1.0]))
