"""Configuration of Sphinx, which builds the documentation. `make docs` calls it."""

import sys
from pathlib import Path

import hpcphotoz

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project, author = "hpcphotoz", "the authors of hpcphotoz"
version = release = hpcphotoz.__version__
html_title = "hpcphotoz"
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_show_copyright = False
html_theme_options = {"navigation_with_keys": True}
exclude_patterns = ["_ext", "_static"]

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "reference_pages",
]
nitpicky = True

# Markdown
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 4
suppress_warnings = ["myst-nb.lexer"]  # a notebook that is not executed does not name its language

# The notebook of the tutorial runs in a folder of its own; results are kept until it changes.
nb_execution_mode = "cache"
nb_execution_cache_path = str(Path(__file__).parent.parent / "build" / "notebooks")
nb_execution_in_temp = True
nb_execution_timeout = 600
nb_execution_raise_on_error = True
nb_merge_streams = True

# Docstrings
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
