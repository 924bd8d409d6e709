"""Policy weights as safetensors: tensors by name and nothing that could run."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from replaybench.errors import DataError
from replaybench.store.files import atomic_write, reading

if TYPE_CHECKING:
    from torch import Tensor

SUFFIX = ".safetensors"


def write_checkpoint(path: Path, state_dict: "Mapping[str, Tensor]") -> None:
    """Writes a state dict; the same tensors give the same bytes.

    Raises:
        DataError: It holds something else than tensors, or the disk refused.
    """
    import safetensors.torch
    from torch import Tensor

    for name, value in state_dict.items():
        if not isinstance(value, Tensor):
            raise DataError(f"{path}: '{name}' is {type(value).__name__}, expected a tensor. Save weights alone.")
    # Cloned, since safetensors refuses tied weights and views of one storage.
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in state_dict.items()}
    with atomic_write(path) as temporary:
        temporary.write_bytes(safetensors.torch.save(tensors))


def read_checkpoint(path: Path) -> "dict[str, Tensor]":
    """Returns the tensors of a checkpoint by name.

    Raises:
        DataError: The file is missing or damaged.
    """
    import safetensors.torch

    with reading(path), _naming(path):
        return dict(safetensors.torch.load_file(path))


def check_checkpoint(path: Path) -> None:
    """Refuses a file that is no safetensors; reads its header only, since weights can be large.

    Raises:
        DataError: The file is missing or damaged.
    """
    import safetensors

    with reading(path), _naming(path), safetensors.safe_open(path, framework="numpy"):
        pass


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        raise DataError(f"{path}: is no safetensors file ({error}). Copy it again or make the log again.") from error
