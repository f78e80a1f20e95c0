"""How the documentation is built: ``sphinx-build -W docs build/docs``."""

import fxprune

project = "fxprune"
author = "The fxprune authors"
copyright = "2026, the fxprune authors"
release = fxprune.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = f"fxprune {release}"
myst_heading_anchors = 3
autodoc_typehints = "description"
autodoc_member_order = "bysource"
autodoc_default_options = {"exclude-members": "__init__, __new__"}
napoleon_google_docstring = True
suppress_warnings = [
    "ref.python",  # the type bytes and the fields of that name
    "myst.xref_missing",  # pages outside docs/, such as a benchmark's results; tests/whole/test_docs.py follows every link
]
exclude_patterns = ["build"]
