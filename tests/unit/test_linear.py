"""The linear layer with oneDNN's products against PyTorch's own."""

import copy

import pytest
import torch
from torch import Tensor, nn

from replaybench.policy.linear import MIN_PRODUCTS, Linear

LARGE = (96, 200, 130)
assert LARGE[0] * LARGE[1] * LARGE[2] >= MIN_PRODUCTS


def plain(layer: Linear) -> nn.Linear:
    made = nn.Linear(layer.in_features, layer.out_features, dtype=layer.weight.dtype)
    made.load_state_dict(copy.deepcopy(layer.state_dict()))
    return made


def results(layer: nn.Linear, inputs: Tensor) -> dict[str, Tensor]:
    inputs = inputs.clone().requires_grad_()
    output = layer(inputs)
    (output * torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)).sum().backward()
    assert inputs.grad is not None and layer.weight.grad is not None and layer.bias.grad is not None
    return {"output": output.detach(), "input": inputs.grad, "weight": layer.weight.grad, "bias": layer.bias.grad}


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [(LARGE, torch.float32), ((3, 20, 13), torch.float32), (LARGE, torch.float64)],
    ids=["onednn", "small", "float64"],
)
def test_output_and_gradients_are_those_of_torchs_layer(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    """Up to rounding in float32, whichever library makes the product, and exactly where that is PyTorch's."""
    rows, inputs, outputs = shape
    torch.manual_seed(0)
    layer = Linear(inputs, outputs, dtype=dtype)
    observations = torch.randn(rows, inputs, dtype=dtype)
    expected = results(plain(layer), observations)
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if shape == LARGE and dtype == torch.float32 else {"rtol": 0, "atol": 0}
    for name, tensor in results(layer, observations).items():
        torch.testing.assert_close(tensor, expected[name], **tolerance, msg=name)
    with torch.inference_mode():
        torch.testing.assert_close(layer(observations), expected["output"], **tolerance)


def test_frozen_parameters_get_no_gradient() -> None:
    """The gradient by the input goes on through a layer that is not trained."""
    rows, inputs, outputs = LARGE
    layer = Linear(inputs, outputs).requires_grad_(False)
    observations = torch.randn(rows, inputs, requires_grad=True)
    layer(observations).sum().backward()
    assert layer.weight.grad is None and layer.bias.grad is None
    torch.testing.assert_close(observations.grad, layer.weight.sum(0).expand(rows, inputs), rtol=1e-4, atol=1e-4)


def test_autocast_decides_the_precision() -> None:
    """Under autocast the product is made in bfloat16, as of any other layer."""
    rows, inputs, outputs = LARGE
    layer = Linear(inputs, outputs)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.randn(rows, inputs)).dtype == torch.bfloat16
