"""Build the API reference from the docstrings, offline, into site/.

python -W error docs/build.py
"""

from pathlib import Path
from pkgutil import iter_modules

import pdoc

import cggm


def main() -> None:
    """Resolve the names that are imported on first use, and render."""
    for name in cggm.__all__:
        getattr(cggm, name)
    pdoc.render.configure(docformat="google")
    modules = [module.name for module in iter_modules(cggm.__path__, "cggm.")]
    pdoc.pdoc("cggm", "cggm_seg", "cggm_cls", *modules, output_directory=Path("site"))


if __name__ == "__main__":
    main()
