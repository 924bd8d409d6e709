"""Squared norms of per-unit gradients from a layer's inputs and output gradients, without the gradients themselves.

A unit is what one norm is wanted for: an item, an episode, a batch. Its rows are all positions at which the layer was
used, padded to the longest unit with output gradients of 0.
Shape letters: U units, R rows of a unit, I inputs, O outputs of a layer.
"""

import torch
from torch import Tensor

from replaybench.maths.shapes import check_shapes


def outer_squared_norm(inputs_URI: Tensor, grads_URO: Tensor) -> Tensor:
    """Returns |sum_r d_r x_r'|^2 of each unit, [U]: the squared norm of a linear layer's weight gradient.

    sum_{r,r'} (x_r . x_r')(d_r . d_r'), which for one row is |x|^2 |d|^2. Long units are cheaper through the weight
    gradient of the unit itself, which is as exact.

    Source: Goodfellow 2015, arXiv 1510.01799; the sum over positions is Li et al. 2022, arXiv 2110.05679, section 4.
    """
    sizes = check_shapes(inputs=(inputs_URI, "URI"), grads=(grads_URO, "URO"))
    if sizes["R"] * (sizes["I"] + sizes["O"]) <= sizes["I"] * sizes["O"]:
        return (_gram(inputs_URI) * _gram(grads_URO)).sum((1, 2))
    return (grads_URO.mT @ inputs_URI).square().sum((1, 2))


def sum_squared_norm(grads_URO: Tensor) -> Tensor:
    """Returns |sum_r d_r|^2 of each unit, [U]: of a bias, or with d * x of a scale."""
    check_shapes(grads=(grads_URO, "URO"))
    return grads_URO.sum(1).square().sum(1)


def embedding_squared_norm(index_UR: Tensor, grads_URO: Tensor) -> Tensor:
    """Returns the squared norm of an embedding's gradient of each unit, [U]: rows of the same index add up.

    sum_{r,r'} 1[i_r = i_r'] (d_r . d_r').
    """
    check_shapes(index=(index_UR, "UR"), grads=(grads_URO, "URO"))
    is_same = index_UR.unsqueeze(2) == index_UR.unsqueeze(1)
    return torch.where(is_same, _gram(grads_URO), 0.0).sum((1, 2))


def _gram(rows_URX: Tensor) -> Tensor:
    return rows_URX @ rows_URX.mT
