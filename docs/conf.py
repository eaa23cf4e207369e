"""The site: Sphinx with furo and MyST. `make docs` builds it without a network, and a warning is an error."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_extensions"))

import poa

project = "POA"
author = "POA contributors"
copyright = "POA contributors, Apache-2.0"
version = release = poa.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton", "adapt", "reference"]
exclude_patterns = ["_build", "_extensions", "_static"]
nb_execution_mode = "off"  # `make notebooks` executes them and keeps the outputs
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_typehints = "description"
autodoc_member_order = "bysource"
napoleon_google_docstring = True

smartquotes = False  # "--out" stays as it is

html_theme = "furo"
html_title = "POA"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
