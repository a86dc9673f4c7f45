"""Sphinx configuration; `make docs` builds with warnings as errors."""

import pathlib
import re
import sys

import torchddn

sys.path.insert(0, str(pathlib.Path(__file__).parent))

project = "torchddn"
author = "torchddn contributors"
copyright = author
version = release = torchddn.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "_static", "gallery/README*"]

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_custom_sections = [("Status", "params_style"), "Gradients"]

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "gallery",
    "download_all_examples": False,
    "show_memory": False,
    "show_signature": False,
    "reference_url": {},
    # By name: Sphinx cannot remember a function.
    "reset_modules": ("matplotlib", "seaborn", "gallery_reset.reset_dtype"),
    "min_reported_time": 1e9,
}

html_theme = "furo"
html_title = "torchddn"
html_static_path = ["_static"]


def escape_bars(app, what, name, obj, options, lines):
    """Lets docstrings write norms as ``|x|``, which reStructuredText would take for a substitution."""
    literal = None  # indentation of the paragraph whose literal block we are in
    for i, line in enumerate(lines):
        indent = len(line) - len(line.lstrip())
        if literal is not None and line.strip() and indent <= literal:
            literal = None
        if literal is None:
            lines[i] = re.sub(r"(`.*?`)|\|", lambda match: match[1] or r"\|", line)
            if line.rstrip().endswith("::"):
                literal = indent


def setup(app):
    app.connect("autodoc-process-docstring", escape_bars, priority=900)
