"""The fused activation against the formula that it replaces."""

from __future__ import annotations

import torch
from torch import nn
from transformers.activations import NewGELUActivation

from llm_arch.backbones.activations import fuse_activations
from llm_arch.backbones.pretrained import Pretrained


def test_same_numbers_and_gradients() -> None:
    values = torch.linspace(-8, 8, 401, requires_grad=True)
    again = values.detach().clone().requires_grad_()
    model = nn.Sequential(nn.Identity(), nn.Sequential(NewGELUActivation()))
    formula = model(values)
    fuse_activations(model)
    fused = model(again)
    torch.testing.assert_close(fused, formula, atol=3e-6, rtol=1e-5)
    formula.sum().backward()
    fused.sum().backward()
    torch.testing.assert_close(again.grad, values.grad, atol=3e-6, rtol=1e-5)


def test_gpt2_has_none_of_the_formula_left() -> None:
    kinds = [type(module) for module in Pretrained("tiny:gpt2").modules()]
    assert NewGELUActivation not in kinds
    assert kinds.count(nn.GELU) == 2  # one a layer
