"""What the README shows is what a reader gets."""

import re
from pathlib import Path

import torch

from replaybench.baseline import gradient_coefficient, load_baseline

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def test_the_correction_in_the_readme_works_as_it_says(tmp_path: Path) -> None:
    """The code block is a complete baseline file: importance sampling, halved where A < 0."""
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    path = tmp_path / "half.py"
    path.write_text(code, encoding="utf-8")
    baseline = load_baseline(str(path))
    log_ratio = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)
    for advantage, share in ((1.0, 1.0), (-2.0, 0.5)):
        coefficient = gradient_coefficient(baseline, baseline.config(), log_ratio, advantage)
        torch.testing.assert_close(coefficient, share * log_ratio.exp())


def test_every_file_that_the_readme_links_to_exists() -> None:
    """Relative links and pictures lead to tracked files or folders."""
    targets = [target for target in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in target]
    missing = [target for target in targets if not (Path(__file__).parents[2] / target).exists()]
    assert targets
    assert missing == []
