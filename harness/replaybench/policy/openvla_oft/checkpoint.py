"""Reads and writes checkpoint folders, and says in plain words why one cannot be used.

Layout: config.json; model.safetensors, or model.safetensors.index.json with its shards; where present
dataset_statistics.json, proprio_projector*, value_head* and an adapter folder. Nothing is unpickled but tensors.
"""

import hashlib
import json
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from replaybench.errors import ConfigError, DataError, ReplayBenchError
from replaybench.policy.openvla_oft.config import VLAConfig, read_config
from replaybench.store.files import atomic_write, read_text

if TYPE_CHECKING:
    from replaybench.policy.openvla_oft.model import OpenVLAOFT

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER = "lora_adapter"
# Parts that published checkpoints keep in files of their own.
SEPARATE_PARTS = ("proprio_projector", "value_head")
# Prefix that peft puts before the names of the model it wraps.
PEFT_PREFIX = "base_model.model."
FILE_NAME = re.compile(r"[\w-][\w.-]{0,199}", re.ASCII)
SAMPLE_BYTES, MAX_SAMPLES = 4096, 1000
DOWNLOAD_AGAIN = "Download it again."


def load_config(folder: Path, overrides: Mapping[str, Any]) -> VLAConfig:
    """Returns the configuration of a checkpoint folder, with the parts that lie in separate files.

    Raises:
        ConfigError: The checkpoint is of another architecture or has no discrete policy.
        DataError: config.json or dataset_statistics.json is missing or damaged.
    """
    source = _read_json(folder / "config.json")
    refuse_other_heads(folder)
    statistics = folder / "dataset_statistics.json"
    if statistics.exists():
        # Those of the data that it was fine-tuned on; config.json may still hold those of all earlier training.
        source["norm_stats"] = _read_json(statistics)
    found: dict[str, Any] = {}
    if proprio := _separate_file(folder, "proprio_projector"):
        found["use_proprio"] = True
        numbers = read_tensors(proprio)["fc1.weight"].shape[1]
        source["_constants"] = {**source.get("_constants", {}), "PROPRIO_DIM": numbers}
    if value_head := _separate_file(folder, "value_head"):
        found["value_outputs"] = read_tensors(value_head)["mlp.4.weight"].shape[0]
    with _building(folder / "config.json"):
        return read_config(source | found | dict(overrides))


def empty_model(factory: Callable[[VLAConfig], "OpenVLAOFT"], config: VLAConfig, folder: Path) -> "OpenVLAOFT":
    """Returns the model without weights; sizes that a file declares take no memory before its tensors bear them out.

    Raises:
        DataError: No model can be built from config.json.
    """
    with _building(folder / "config.json"), torch.device("meta"):
        return factory(config)


@contextmanager
def _building(path: Path) -> Iterator[None]:
    """Names the file whose fields could not be made into what they describe."""
    try:
        yield
    except ReplayBenchError:
        raise
    except Exception as error:
        # The libraries that take the fields check some of them, each with errors of its own.
        first = str(error).split("\n", 1)[0][:200]
        raise DataError(f"{path}: a field is missing or malformed ({type(error).__name__}: {first}).") from error


def refuse_other_heads(folder: Path) -> None:
    """Refuses checkpoints whose actions do not come from the language model's tokens.

    The published `action_head--*` files belong to L1-regression or diffusion training, in which no token loss trains
    the token head, so its logits are no policy. `vision_backbone--*` files hold FiLM layers.
    """
    if regression := sorted(folder.glob("action_head--*")):
        raise ConfigError(
            f"{regression[0]}: this checkpoint predicts continuous actions with a head of its own (L1 regression or "
            "diffusion); its token logits were never trained, so it has no discrete policy to correct. Use a "
            "checkpoint that was trained on action tokens, or fine-tune this one on them and remove the file."
        )
    if film := sorted(folder.glob("vision_backbone--*")):
        raise ConfigError(f"{film[0]}: holds FiLM layers, which are not built here. Use a checkpoint without FiLM.")
    if others := sorted(folder.glob("action_head*")):
        warnings.warn(
            f"{others[0]}: this action head is not read; actions come from the token logits. If the checkpoint was "
            "trained by L1 regression, these logits are no policy.",
            stacklevel=4,
        )


def load_weights(model: "OpenVLAOFT", folder: Path, dtype: torch.dtype) -> None:
    """Fills a model on the meta device from a checkpoint folder.

    Raises:
        DataError: Names the files or tensors that are missing, unknown, of another shape or damaged.
    """
    state: dict[str, Tensor] = {}
    for path in weight_files(folder):
        state |= {name: tensor.to(dtype) for name, tensor in read_tensors(path).items()}
    for part in SEPARATE_PARTS:
        file = _separate_file(folder, part)
        tensors = read_tensors(file) if file else {}
        state |= {f"{part}.{name}": tensor.to(dtype) for name, tensor in tensors.items()}
    expected = dict(model.state_dict())
    if not any(name.startswith("value_head.") for name in state):
        # A new value head may be put on a checkpoint that has none.
        expected = {name: tensor for name, tensor in expected.items() if not name.startswith("value_head.")}
    _compare(folder, expected, state)
    model.load_state_dict(state, strict=False, assign=True)


def weight_files(folder: Path) -> list[Path]:
    """Returns the files that hold the model's weights, all of which exist and can be opened.

    Raises:
        DataError: There are none, or the index names shards that are missing or cut short.
    """
    if (folder / WEIGHTS).exists():
        return [folder / WEIGHTS]
    if not (folder / INDEX).exists():
        if (folder / "adapter_config.json").exists():
            raise DataError(
                f"{folder}: is a LoRA adapter without its base. Load the base folder with adapter={str(folder)!r}."
            )
        raise DataError(f"{folder}: holds neither {WEIGHTS} nor {INDEX}. Name the folder of a checkpoint.")
    index = _read_json(folder / INDEX).get("weight_map", {})
    if not isinstance(index, dict) or not all(
        isinstance(name, str) and FILE_NAME.fullmatch(name) for name in index.values()
    ):
        raise DataError(f"{folder / INDEX}: weight_map must name files of this folder alone. {DOWNLOAD_AGAIN}")
    shards = sorted({folder / name for name in index.values()})
    if missing := [path.name for path in shards if not path.exists()]:
        raise DataError(
            f"{folder / INDEX}: names {len(shards)} shards, of which {_list(missing)} are missing. Finish the download."
        )
    for path in shards:
        names = set(tensor_names(path))
        if absent := sorted(name for name, file in index.items() if file == path.name and name not in names):
            raise DataError(f"{path}: lacks {_list(absent)}, which {INDEX} says it holds. {DOWNLOAD_AGAIN}")
    return shards


def fingerprint(folder: Path, adapter: Path | str | None = None) -> bytes:
    """Returns 32 bytes that tell one checkpoint from another: of its small files all, of weights an even sample.

    All of 15 GB would take a minute each time. Other training changes every part of the weights, so a sample shows it.
    """
    digest = hashlib.sha256()
    small = [folder / "config.json", folder / "dataset_statistics.json"]
    parts = [path for part in SEPARATE_PARTS if (path := _separate_file(folder, part))]
    adapters = sorted(Path(adapter).glob("adapter_*")) if adapter is not None else []
    for path in [*small, *weight_files(folder), *parts, *adapters]:
        if path.exists():
            size = path.stat().st_size
            digest.update(f"{path.name} {size} ".encode())
            with path.open("rb") as file:
                for start in range(0, size, max(SAMPLE_BYTES, size // MAX_SAMPLES)):
                    file.seek(start)
                    digest.update(file.read(SAMPLE_BYTES))
    return digest.digest()


def tensor_names(path: Path) -> list[str]:
    """Returns the names of the tensors in a safetensors file; a file that was cut short is refused."""
    try:
        with safe_open(path, framework="pt") as file:
            return list(file.keys())
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path}: is damaged or cut short ({error}). {DOWNLOAD_AGAIN}") from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Returns the tensors of a .safetensors file, or of a .pt file that holds nothing else.

    Raises:
        DataError: The file is damaged, or holds objects that would have to be unpickled.
    """
    if path.suffix == ".safetensors":
        tensor_names(path)
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    try:
        content = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:
        # torch raises errors of its own, pickle's and zipfile's; all mean that these are no plain tensors.
        raise DataError(
            f"{path}: is damaged or holds more than tensors ({type(error).__name__}); it is not unpickled. "
            "Download it again, or save its tensors as safetensors."
        ) from error
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise DataError(f"{path}: holds something else than tensors by name. Save the state dict alone.")
    # Training wraps the part, which leaves a prefix.
    return {name.removeprefix("module."): tensor for name, tensor in content.items()}


def load_adapter(model: "OpenVLAOFT", folder: Path, adapter: Path | str | None) -> None:
    """Puts a LoRA adapter on the model: the one asked for, or the one that config.json says is not merged."""
    if adapter is None and model.config.source.get("unmerged_adapter"):
        adapter = folder / ADAPTER
    if adapter is None:
        return
    from replaybench.policy.openvla_oft.adapt import add_lora, lora_config_from_json, refuse_other_adapters

    adapter = Path(adapter)
    content = _read_json(adapter / "adapter_config.json")
    refuse_other_adapters(content)
    weights = [adapter / name for name in ("adapter_model.safetensors", "adapter_model.bin")]
    existing = [path for path in weights if path.exists()]
    if not existing:
        raise DataError(f"{weights[0]}: is missing. {DOWNLOAD_AGAIN}")
    tensors = read_tensors(existing[0])
    with _building(adapter / "adapter_config.json"):
        add_lora(model, lora_config_from_json(content, tensors))
    state = {_inner_name(name): tensor for name, tensor in tensors.items()}
    _compare(adapter, {name: tensor for name, tensor in model.state_dict().items() if ".lora_" in name}, state)
    model.load_state_dict(state, strict=False)


def save(model: "OpenVLAOFT", folder: Path, max_shard_bytes: int) -> None:
    """Writes the folder that `OpenVLAOFT.from_pretrained` reads; config.json comes last, so it stands for the whole."""
    _remove_checkpoint(folder)
    parts: dict[str, dict[str, Tensor]] = {part: {} for part in ("", *SEPARATE_PARTS)}
    has_adapter = False
    for name, tensor in model.state_dict().items():
        first, rest = name.split(".", 1)
        if ".lora_" in name:
            has_adapter = True
        elif first in SEPARATE_PARTS:
            parts[first][rest] = tensor
        else:
            parts[""][name.replace(".base_layer.", ".")] = tensor
    _save_shards(folder, parts[""], max_shard_bytes)
    for part in SEPARATE_PARTS:
        if parts[part]:
            _save_tensors(folder / f"{part}.safetensors", parts[part])
    if has_adapter:
        save_adapter(model, folder / ADAPTER)
    if model.config.norm_stats:
        _save_json(folder / "dataset_statistics.json", model.config.norm_stats)
    _save_json(folder / "config.json", model.config.source | {"unmerged_adapter": has_adapter})


def _remove_checkpoint(folder: Path) -> None:
    """Removes an older checkpoint, config.json first: of another number of shards, it would be read beside the new."""
    old = [folder / "config.json", folder / WEIGHTS, folder / INDEX, *folder.glob("model-*-of-*.safetensors")]
    old += [folder / ADAPTER / name for name in ("adapter_config.json", "adapter_model.safetensors")]
    old += [path for part in SEPARATE_PARTS if (path := _separate_file(folder, part))]
    for path in old:
        path.unlink(missing_ok=True)


def save_adapter(model: "OpenVLAOFT", folder: Path) -> None:
    """Writes the LoRA weights alone, in the format of peft."""
    from replaybench.policy.openvla_oft.adapt import lora_config_of

    state = {_outer_name(name): tensor for name, tensor in model.state_dict().items() if ".lora_" in name}
    _save_tensors(folder / "adapter_model.safetensors", state)
    _save_json(folder / "adapter_config.json", lora_config_of(model))


def _inner_name(name: str) -> str:
    """Returns a LoRA tensor's name in the model; files leave out the adapter's name."""
    return name.removeprefix(PEFT_PREFIX).removesuffix(".weight") + ".default.weight"


def _outer_name(name: str) -> str:
    return PEFT_PREFIX + name.replace(".default.weight", ".weight")


def _save_shards(folder: Path, state: Mapping[str, Tensor], max_bytes: int) -> None:
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in state.items():
        if shards[-1] and size + tensor.nbytes > max_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    if len(shards) == 1:
        _save_tensors(folder / WEIGHTS, shards[0])
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _save_tensors(folder / file, shard)
        weight_map |= dict.fromkeys(shard, file)
    total = sum(tensor.nbytes for tensor in state.values())
    _save_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _save_tensors(path: Path, state: Mapping[str, Tensor]) -> None:
    # "format" is what other loaders ask for.
    data = to_bytes({name: value.detach().cpu().contiguous() for name, value in state.items()}, {"format": "pt"})
    with atomic_write(path) as temporary:
        temporary.write_bytes(data)


def _save_json(path: Path, content: Mapping[str, Any]) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_text(path))
    except FileNotFoundError as error:
        raise DataError(f"{path}: is missing. Name a folder that holds it, or finish the download.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: is no readable JSON ({error}). {DOWNLOAD_AGAIN}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: holds {type(content).__name__}, expected a JSON object. {DOWNLOAD_AGAIN}")
    return content


def _separate_file(folder: Path, part: str) -> Path | None:
    """Returns the file of a separate part; names carry training steps, and only one may lie there."""
    files = [path for path in folder.glob(f"{part}*") if path.suffix in (".safetensors", ".pt")]
    if len(files) > 1:
        raise DataError(f"{folder}: holds several {part} files: {_list(sorted(p.name for p in files))}. Keep one.")
    return files[0] if files else None


def _compare(where: Path, expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Refuses tensors that are missing, unknown or of another shape."""
    missing, unknown = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    problems = [f"missing: {_list(missing)}"] if missing else []
    if unknown:
        problems.append(f"unknown: {_list(unknown)}")
    for name in sorted(expected.keys() & found.keys()):
        if expected[name].shape != found[name].shape:
            problems.append(f"{name} is {list(found[name].shape)}, expected {list(expected[name].shape)}")
    if problems:
        raise DataError(f"{where}: the tensors do not fit the model. {_list(problems, '; ')}. Check config.json.")


def _list(names: Iterable[str], separator: str = ", ", limit: int = 8) -> str:
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return separator.join(names[:limit]) + more
