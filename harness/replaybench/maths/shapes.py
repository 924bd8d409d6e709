"""Executes the shape contract that a docstring states."""

from torch import Tensor

from replaybench.errors import ContractError


def check_shapes(**tensors: tuple[Tensor, str]) -> dict[str, int]:
    """Checks that tensors agree on the sizes named by shape letters.

    Args:
        tensors: name=(tensor, letters), one letter an axis, e.g. `log_pi=(log_pi, "BA")`.

    Returns:
        The size of each letter.

    Raises:
        ContractError: An axis count or a size disagrees.
    """
    sizes: dict[str, int] = {}
    for name, (tensor, letters) in tensors.items():
        if tensor.ndim != len(letters):
            raise ContractError(f"{name} has shape {tuple(tensor.shape)}, expected axes {letters}.")
        for letter, size in zip(letters, tensor.shape, strict=True):
            if sizes.setdefault(letter, size) != size:
                raise ContractError(f"{name} has {letter}={size}, other arguments have {letter}={sizes[letter]}.")
    return sizes
