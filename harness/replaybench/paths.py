"""Where the files that travel with the package are: in the checkout, or bundled in the wheel."""

from pathlib import Path

PACKAGE_DIR = Path(__file__).resolve().parent
_BUNDLED = PACKAGE_DIR / "_bundled"
ROOT = _BUNDLED if _BUNDLED.is_dir() else PACKAGE_DIR.parents[1]

BASELINES_DIR = ROOT / "baselines"
RECIPES_DIR = ROOT / "datasets"
TEMPLATE_DIR = ROOT / "reports" / "template"
PRESETS_DIR = PACKAGE_DIR / "presets"
