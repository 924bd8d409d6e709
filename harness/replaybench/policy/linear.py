"""A linear layer whose products in float32 on a CPU are made by oneDNN.

PyTorch makes them with MKL, which uses half of the vector width of an AMD Zen 5; oneDNN uses all of it. The layer is
otherwise `torch.nn.Linear`: the same parameters, the same values up to rounding.
"""

from typing import Any

import torch
from torch import Tensor, nn

# Multiplications below which a call of oneDNN costs more than it saves.
MIN_PRODUCTS = 2**20


class Linear(nn.Linear):
    """y = x W' + b, with x [..., inputs] and y [..., outputs]."""

    def forward(self, input: Tensor) -> Tensor:
        if not _suits_onednn(input, self.weight) or self.bias is None:
            return super().forward(input)
        if not torch.is_grad_enabled():
            return _product(input, self.weight, self.bias)
        made: Tensor = _Product.apply(input, self.weight, self.bias)  # type: ignore[no-untyped-call]
        return made


def _suits_onednn(input: Tensor, weight: Tensor) -> bool:
    return (
        input.dim() == 2
        and len(input) * weight.numel() >= MIN_PRODUCTS
        and input.dtype == weight.dtype == torch.float32
        and input.device.type == "cpu"
        and not torch.is_autocast_enabled("cpu")
        and torch.backends.mkldnn.is_available()
    )


def _product(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    """Returns left right' + bias; what `torch.compile` calls for a linear layer on a CPU."""
    made: Tensor = torch.ops.mkldnn._linear_pointwise(left, right, bias, "none", [], "")
    return made


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(input, weight)
        return _product(input, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        input, weight = ctx.saved_tensors
        needs_input, needs_weight, needs_bias = ctx.needs_input_grad
        return (
            _product(grad, weight.t()) if needs_input else None,
            _product(grad.t(), input.t()) if needs_weight else None,
            grad.sum(0) if needs_bias else None,
        )
