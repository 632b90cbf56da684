"""Build one searchable site of guide and API reference, offline, into site/.

python -W error docs/build.py
"""

import shutil
import warnings
from pathlib import Path

from sphinx.cmd.build import main
from sphinx.deprecation import RemovedInSphinx11Warning

ROOT = Path(__file__).parents[1]

if __name__ == "__main__":
    # Sphinx's own napoleon calls its autodoc in a deprecated way.
    warnings.simplefilter("ignore", RemovedInSphinx11Warning)
    # timm 1.0.22, which nnU-Net's networks hold back, imports what PyTorch is about to drop.
    warnings.filterwarnings("ignore", "`torch.jit", FutureWarning)
    for old in ("site", "docs/api"):  # pages of modules that are no more would be built again
        shutil.rmtree(ROOT / old, ignore_errors=True)
    options = ["--fail-on-warning", "--nitpicky", "--quiet"]
    cache = ["--doctree-dir", str(ROOT / "build" / "doctrees")]
    raise SystemExit(main([*options, *cache, str(ROOT / "docs"), str(ROOT / "site")]))
