"""Sphinx: the guide in Markdown and the reference from docstrings, without any network."""

import re
import sys

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

import cggm

project = "CGGM"
release = version = cggm.__version__
project_copyright = "2026, the CGGM developers, Apache-2.0"
html_title = f"CGGM {release}"
html_theme = "furo"
html_static_path = html_css_files = ["wide.css"]
html_copy_source = False
html_show_search_summary = False  # fetched, which browsers forbid for files
html_show_sphinx = False
extensions = [
    "myst_parser",
    "sphinx.ext.apidoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

apidoc_modules = [
    {"path": "../cggm_seg", "destination": "api/cggm_seg"},
    {"path": "../cggm_cls", "destination": "api/cggm_cls"},
    {"path": "../cggm_nnunet", "destination": "api/cggm_nnunet"},
    {
        "path": "../cggm",
        "destination": "api/cggm",
        "exclude_patterns": [
            "../cggm/methods/[a-z]*.py",
            "../cggm/balancer.py",
            "../cggm/handlers.py",
        ],
    },
]
exclude_patterns = ["api/*/modules.rst"]
apidoc_automodule_options = {"members", "show-inheritance"}
apidoc_module_first = True
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False  # those of PyTorch refer to its own pages
autodoc_use_type_comments = False
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
add_module_names = False
toc_object_entries = False
nitpick_ignore_regex = [
    (
        "py:.*",
        r"(argparse|collections|enum|fractions|gzip|jsonargparse|markupsafe|pathlib|zlib|zlib_ng)\..*",
    ),
    (
        "py:.*",
        r"(batchgeneratorsv2|ignite|lightning|monai|nibabel|nnunetv2|np|numpy|PIL)\..*",
    ),
    (
        "py:.*",
        r"(torch|transformers)\..*",
    ),
    ("py:.*", r"cggm.*\.[CRT]"),  # type variables
    ("py:.*", "Axes|NDArray|SafetensorError"),
    ("py:data", ".*"),  # a constant has an entry if it has a docstring
]
html_math_renderer = "mathml"


def _formula(translator: HTML5Translator, node: nodes.Element) -> None:
    if isinstance(node, nodes.math_block):
        formula = convert(node.astext(), display="block")
        translator.body.append(f'<div style="overflow-x: auto; padding: 0.3em 0">{formula}</div>')
    else:
        translator.body.append(convert(node.astext()))
    raise nodes.SkipNode


def _behind_a_face(app: Sphinx, what: str, name: str, found: object, *_: object) -> bool | None:
    """Leave out what a package only passes on: its own module's entry describes it.

    ``cggm`` and ``cggm.methods`` are what people import, so these describe what they pass on, each
    name once.
    """
    package = app.env.current_document.autodoc_module
    if package == "cggm.methods":
        return True if name in cggm.__all__ else None
    home = getattr(found, "__module__", package)
    passed_on = home.startswith(f"{package}.") and hasattr(sys.modules.get(package), "__path__")
    return True if passed_on and package != "cggm" else None


def _reference(app: Sphinx, page: str, content: list[str]) -> None:
    """On the site the reference of a package is behind a link to its folder."""
    content[0] = re.sub(r"\[(cggm\w*)\]\(\.\./\1\)", r"{doc}`\1 <api/\1/\1>`", content[0])


def _unbroken(app: Sphinx, page: str, content: list[str]) -> None:
    """A figure and its interval stay on one line of a narrow cell."""
    content[0] = content[0].replace(" ± ", "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}")


def setup(app: Sphinx) -> None:
    """Formulas become MathML, which browsers draw themselves; Sphinx's own ways fetch MathJax."""
    app.add_html_math_renderer(
        "mathml", inline_renderers=(_formula, None), block_renderers=(_formula, None)
    )
    app.connect("autodoc-skip-member", _behind_a_face)
    app.connect("source-read", _reference)
    app.connect("source-read", _unbroken)
    for name in cggm.__all__:  # which are imported on first use
        getattr(cggm, name)
