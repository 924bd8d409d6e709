"""Gradients of a policy summed over decisions, and the squared norm of each unit's own gradient, in one backward pass.

Linear, LayerNorm, RMSNorm and Embedding layers give norms exactly: from what enters them and what leaves, as gradient.
Other trainable parameters are projected: exactly if they are few, on random directions if they are many.
Shape letters: B decisions, A action tokens, K bins, U units, V directions, P parameters.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from replaybench.errors import ContractError
from replaybench.maths.gradient_norm import embedding_squared_norm, outer_squared_norm, sum_squared_norm
from replaybench.policy import Policy
from replaybench.policy.linear import Linear

MAX_DIRECTIONS = 256
DIRECTIONS_AT_ONCE = 16
PROJECTION_SEED = 0


class UnitGradients(NamedTuple):
    """total [P], the gradient summed over all decisions; squared_norm [U] of each unit's part of it."""

    total: Tensor
    squared_norm: Tensor


@dataclass
class _Use:
    """A layer with trainable parameters, and what entered and left it in the forward pass, one pair a call."""

    layer: nn.Module
    trained: frozenset[str]
    inputs: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)


class GradientMeter:
    """Measures gradients by the policy's parameters (not the value head's).

    Args:
        policy: A torch module; its parameters are left as they are.
    """

    def __init__(self, policy: Policy) -> None:
        if not isinstance(policy, nn.Module):
            raise ContractError(f"{type(policy).__name__} must be a torch.nn.Module to have its gradients measured.")
        self.policy, self.module = policy, policy
        self.parameters = [parameter for parameter in policy.policy_parameters() if parameter.requires_grad]
        self._uses = _covered_layers(policy, self.parameters)
        covered = {id(parameter) for use in self._uses for parameter in use.layer.parameters(recurse=False)}
        names = {id(parameter): name for name, parameter in policy.named_parameters()}
        self._projected = {names[id(p)]: p for p in self.parameters if id(p) not in covered}
        self._is_checked = False

    @property
    def most_decisions(self) -> int | None:
        """Most decisions that the policy takes at once; beyond, its layers run where no hook can follow."""
        return getattr(self.policy, "microbatch", None)

    def measure(self, observations: Tensor, unit_B: Tensor, objective: Callable[[Tensor], Tensor]) -> UnitGradients:
        """Returns the gradients of sum_b J_b.

        Args:
            observations: [B, ...].
            unit_B: [B] number of the unit of each decision, from 0 without gaps, ascending.
            objective: Maps logits [B, A, K] to the scalar sum_b J_b; J_b may read the logits of decision b only.

        Raises:
            ContractError: A layer's parameters are also used outside the layer, where no hook sees them, or there are
                more decisions than the policy takes at once.
        """
        if self.most_decisions is not None and len(observations) > self.most_decisions:
            raise ContractError(
                f"{len(observations)} decisions are measured together, the policy takes {self.most_decisions} at once. "
                "Raise its microbatch to the longest episode."
            )
        with self._recording():
            logits_BAK = self.policy(observations).logits_BAK
        outputs = [output for use in self._uses for output in use.outputs]
        wanted = [logits_BAK, *outputs, *self.parameters]
        grads = torch.autograd.grad(objective(logits_BAK), wanted, allow_unused=True)
        of_logits, of_outputs, of_parameters = grads[0], grads[1 : 1 + len(outputs)], grads[1 + len(outputs) :]
        total = torch.cat([_or_zero(g, p).flatten() for g, p in zip(of_parameters, self.parameters, strict=True)])
        layout = _Layout(unit_B)
        by_parameter = {id(p): g for p, g in zip(self.parameters, of_parameters, strict=True) if g is not None}
        squared_norm = torch.zeros(layout.num_units, dtype=torch.float64, device=unit_B.device)
        remaining = iter(of_outputs)
        for use in self._uses:
            rows = [(x, _or_zero(next(remaining), z)) for x, z in zip(use.inputs, use.outputs, strict=True)]
            if not self._is_checked:
                _check_layer(use, rows, by_parameter)
            if rows:
                squared_norm += _layer_squared_norm(use, rows, layout).double()
        self._is_checked = True
        if self._projected and of_logits is not None:
            squared_norm += self._projected_squared_norm(observations, of_logits, layout)
        return UnitGradients(total.detach(), squared_norm)

    @contextmanager
    def _recording(self) -> Iterator[None]:
        handles = []
        for use in self._uses:
            use.inputs, use.outputs = [], []

            def record(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, use: _Use = use) -> None:
                use.inputs.append(inputs[0].detach())
                use.outputs.append(output)

            handles.append(use.layer.register_forward_hook(record))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _projected_squared_norm(self, observations: Tensor, grad_BAK: Tensor, layout: "_Layout") -> Tensor:
        """Returns the squared norm by the parameters that no covered layer holds, [U].

        |g|^2 = sum_v <g, v>^2 over an orthonormal basis, and the mean of <g, v>^2 over directions of random signs;
        <g_u, v> = sum_b dJ_b/d logits . (derivative of the logits along v).
        """
        names, frozen = list(self._projected), {name: p.detach() for name, p in self._projected.items()}
        sizes = [p.numel() for p in frozen.values()]
        directions_VP, weight = _directions(sum(sizes), grad_BAK)

        def logits(values: dict[str, Tensor]) -> Tensor:
            output: Tensor = torch.func.functional_call(self.module, values, (observations,)).logits_BAK
            return output

        def along(direction_P: Tensor) -> Tensor:
            parts = zip(names, direction_P.split(sizes), strict=True)
            tangent = {name: part.view_as(frozen[name]) for name, part in parts}
            change_BAK: Tensor = torch.func.jvp(logits, (frozen,), (tangent,))[1]
            return (change_BAK * grad_BAK).flatten(1).sum(1)

        products_VB = torch.func.vmap(along, chunk_size=DIRECTIONS_AT_ONCE)(directions_VP)
        products_VU = products_VB.new_zeros(len(products_VB), layout.num_units).index_add(1, layout.unit_B, products_VB)
        return weight * products_VU.detach().double().square().sum(0)


class _Layout:
    """Where each decision goes when units are padded to the same length."""

    def __init__(self, unit_B: Tensor) -> None:
        lengths = torch.bincount(unit_B)
        first = lengths.cumsum(0) - lengths
        self.unit_B = unit_B
        self.position_B = torch.arange(len(unit_B), device=unit_B.device) - first[unit_B]
        self.num_units, self.longest = len(lengths), int(lengths.max())

    def pad(self, rows: Tensor) -> Tensor:
        """Returns [U, R, X] from [B, ..., X]: the positions of a unit's decisions end to end, padded with 0."""
        flat = rows.reshape(len(rows), -1, rows.shape[-1])
        padded = flat.new_zeros(self.num_units, self.longest, *flat.shape[1:])
        padded[self.unit_B, self.position_B] = flat
        return padded.flatten(1, 2)


def _covered_layers(module: nn.Module, parameters: list[nn.Parameter]) -> list[_Use]:
    """Returns the layers whose trainable parameters are used nowhere else and have a closed form."""
    wanted = {id(parameter) for parameter in parameters}
    owners: dict[int, int] = {}
    for layer in module.modules():
        for parameter in layer.parameters(recurse=False):
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    uses = []
    for layer in module.modules():
        mine = [parameter for parameter in layer.parameters(recurse=False) if id(parameter) in wanted]
        if mine and _has_closed_form(layer) and all(owners[id(parameter)] == 1 for parameter in mine):
            trained = {name for name, p in layer.named_parameters(recurse=False) if id(p) in wanted}
            uses.append(_Use(layer, frozenset(trained)))
    return uses


def _has_closed_form(layer: nn.Module) -> bool:
    # Subclasses may compute something else in their forward.
    if type(layer) is nn.Embedding:
        return not layer.scale_grad_by_freq and layer.max_norm is None
    if type(layer) is nn.LayerNorm:
        return len(layer.normalized_shape) == 1
    if _is_rms_norm(layer):
        return True
    return type(layer) in (nn.Linear, Linear)


def _is_rms_norm(layer: nn.Module) -> bool:
    """Whether this is the norm of Llama and its kin, which every model family defines anew under a name of its own."""
    return type(layer).__name__.endswith("RMSNorm") and hasattr(layer, "variance_epsilon")


Rows = list[tuple[Tensor, Tensor]]


def _layer_squared_norm(use: _Use, rows: Rows, layout: _Layout) -> Tensor:
    """Returns the squared norm of each unit's gradient by the trained parameters of one layer, [U].

    Args:
        rows: For each call of the layer its input and the gradient of its output.
    """
    layer, grads = use.layer, torch.cat([layout.pad(d) for _, d in rows], 1)
    if isinstance(layer, nn.Embedding):
        index = torch.cat([layout.pad(x.unsqueeze(-1)) for x, _ in rows], 1).squeeze(-1)
        if layer.padding_idx is not None:
            grads = torch.where((index == layer.padding_idx).unsqueeze(-1), 0.0, grads)
        return embedding_squared_norm(index, grads)
    total = grads.new_zeros(layout.num_units)
    if "bias" in use.trained:
        total = total + sum_squared_norm(grads)
    if "weight" in use.trained and (isinstance(layer, nn.LayerNorm) or _is_rms_norm(layer)):
        scaled = torch.cat([layout.pad(_normalised(layer, x) * d) for x, d in rows], 1)
        total = total + sum_squared_norm(scaled)
    elif "weight" in use.trained:
        total = total + outer_squared_norm(torch.cat([layout.pad(x) for x, _ in rows], 1), grads)
    return total


def _normalised(layer: nn.Module, x: Tensor) -> Tensor:
    """Returns what the layer's weight multiplies."""
    if not isinstance(layer, nn.LayerNorm):
        epsilon: float = layer.variance_epsilon  # type: ignore[assignment]
        wide = x.float() if x.dtype == torch.bfloat16 else x
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)).to(x.dtype)
    return functional.layer_norm(x, layer.normalized_shape, eps=layer.eps)


def _check_layer(use: _Use, rows: Rows, by_parameter: dict[int, Tensor]) -> None:
    """Refuses a layer whose gradient is not what its own calls add up to."""
    for name in use.trained:
        parameter = use.layer.get_parameter(name)
        seen = sum((_gradient_of(use.layer, name, x, d) for x, d in rows), torch.zeros_like(parameter))
        whole = by_parameter.get(id(parameter), torch.zeros_like(parameter))
        if not torch.allclose(seen, whole, rtol=1e-3, atol=1e-3 * float(whole.abs().max()) + 1e-12):
            raise ContractError(
                f"{type(use.layer).__name__}.{name} of shape {tuple(parameter.shape)} is used outside its layer's "
                "forward, so the norms of its gradient cannot be told. Call the layer instead of reading its weights."
            )


def _gradient_of(layer: nn.Module, name: str, x: Tensor, d: Tensor) -> Tensor:
    """Returns the gradient of one parameter of a layer from one call."""
    flat = d.flatten(0, -2)
    if name == "bias":
        return flat.sum(0)
    if isinstance(layer, nn.LayerNorm) or _is_rms_norm(layer):
        return (_normalised(layer, x) * d).flatten(0, -2).sum(0)
    if isinstance(layer, nn.Embedding):
        kept = flat if layer.padding_idx is None else flat * (x.flatten() != layer.padding_idx).unsqueeze(-1)
        return torch.zeros_like(layer.weight).index_add(0, x.flatten(), kept)
    return flat.mT @ x.flatten(0, -2)


def _directions(size: int, like: Tensor) -> tuple[Tensor, float]:
    """Returns directions [V, P] and the weight of each <g, v>^2: a basis if it is small, else random signs."""
    if size <= MAX_DIRECTIONS:
        return torch.eye(size, dtype=like.dtype, device=like.device), 1.0
    generator = torch.Generator().manual_seed(PROJECTION_SEED)
    signs = torch.randint(0, 2, (MAX_DIRECTIONS, size), generator=generator, dtype=torch.int8) * 2 - 1
    return signs.to(like.device, like.dtype), 1.0 / MAX_DIRECTIONS


def _or_zero(grad: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if grad is None else grad
