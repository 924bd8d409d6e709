"""OpenVLA-OFT at its published size with random weights: made, written, read, acted with, trained for one update.

python tests/soak/full_size.py [openvla-7b | tiny] [FOLDER]

On the CPU, with the settings of the recipe `libero-7b-spatial`. The checkpoint stays where a folder is named. At full
size it takes 20 GB of memory and 15 GB of disk.
"""

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from replaybench.maths.ratios import token_log_prob
from replaybench.policy import make_policy
from replaybench.policy.openvla_oft import OpenVLAOFT
from replaybench.policy.openvla_oft.config import NAMED
from replaybench.recipe import load_recipe
from replaybench.seeding import torch_generator

# A shard is held in memory a second time while it is written; the tiny model comes in shards too.
SHARD_BYTES = {"openvla-7b": 2_000_000_000, "tiny": 3_000_000}
STATISTICS = {
    "q01": [-0.7, -0.8, -0.9, -0.1, -0.2, -0.15, 0.0],
    "q99": [0.9, 0.8, 0.9, 0.1, 0.2, 0.15, 1.0],
    "mask": [True] * 6 + [False],
}


def write_checkpoint(folder: Path, name: str) -> None:
    """Writes a checkpoint for 224 pixels in the published layout: shards, index, statistics, a tokenizer of bytes."""
    source = NAMED[name] | {"image_sizes": [224, 224], "norm_stats": {"libero": {"action": STATISTICS}}}
    model = OpenVLAOFT.from_config(source, "cpu", torch_generator("full size"), torch.bfloat16)
    model.save_pretrained(folder, SHARD_BYTES[name])
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2} | {letter: i for i, letter in enumerate(alphabet, start=3)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))


@contextmanager
def told(what: str) -> Iterator[None]:
    """Prints how long the block took, and the largest memory that the process has had."""
    clock = time.perf_counter()
    yield
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{what}: {time.perf_counter() - clock:.1f} s, {peak_gb:.1f} GB at most so far", flush=True)


def main(name: str, folder: Path) -> None:
    with told(f"{name} made and written"):
        write_checkpoint(folder, name)
    settings = load_recipe("libero-7b-spatial").policy.settings | {"checkpoint": str(folder), "microbatch": 1}
    with told("read, with LoRA"):
        policy = make_policy("openvla_oft", settings, torch_generator("lora"))
    images = torch.randint(0, 256, (1, 224, 224, 3), dtype=torch.uint8, generator=torch_generator("images"))
    with told("one forward pass"), torch.no_grad():
        before = policy(images).logits_BAK
    assert before.shape == (1, 56, 256)
    assert bool(before.isfinite().all())
    tokens = before.argmin(-1)
    optimiser = torch.optim.AdamW(policy.policy_parameters(), lr=1e-3)
    with told("one update"):
        (-token_log_prob(policy(images).logits_BAK, tokens).mean()).backward()
        optimiser.step()
    assert all(parameter.grad is not None for parameter in policy.policy_parameters())
    with told("one more forward pass"), torch.no_grad():
        after = policy(images).logits_BAK
    rise = float(token_log_prob(after, tokens).mean() - token_log_prob(before, tokens).mean())
    print(f"log-probability of the actions that were taught: {rise:+.3f}")
    assert rise > 0


if __name__ == "__main__":
    size = sys.argv[1] if len(sys.argv) > 1 else "openvla-7b"
    if len(sys.argv) > 2:
        main(size, Path(sys.argv[2]))
    else:
        with TemporaryDirectory() as temporary:
            main(size, Path(temporary))
