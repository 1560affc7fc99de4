"""Where the package keeps its own files: the Hydra configuration and the bundled backbones."""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
# In a wheel `conf` lies inside the package; in a checkout it is the top-level folder that people edit.
CONF = PACKAGE / "conf" if (PACKAGE / "conf").is_dir() else PACKAGE.parent / "conf"
BUNDLED = PACKAGE / "bundled"
