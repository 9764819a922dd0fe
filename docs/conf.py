"""How Sphinx builds the site: `python -m sphinx -W --keep-going docs docs/_build/html`.

The build needs no network. Links between pages, to headings and to files are checked by it; those
to other sites by `python -m sphinx -b linkcheck docs docs/_build/links`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pygments.lexers.special import TextLexer

if TYPE_CHECKING:
    from sphinx.application import Sphinx

PROJECT = Path(__file__).parents[1]
sys.path[:0] = [str(PROJECT), str(PROJECT / "docs" / "_ext")]

from refllm import __version__  # noqa: E402

project = "refllm"
author = "the authors of refllm"
version = release = __version__
extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "myst_nb",
    "links",
    "docstrings",
    "api_pages",
    "command_pages",
    "runs",
]
exclude_patterns = ["_build", "_ext", "**.ipynb_checkpoints"]
suppress_warnings = ["ref.python"]  # two classes with one name, in an annotation of a third module

# MyST: headings get GitHub's anchors, so that a link works in both places.
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 4

# Notebooks in docs/learn are executed; what did not change is taken from the cache.
nb_execution_mode = "cache"
nb_execution_cache_path = str(PROJECT / "docs" / "_build" / "notebooks")
nb_execution_raise_on_error = True
nb_execution_timeout = 600
nb_merge_streams = True
nb_output_stderr = "remove"  # such as the line that announces compiling
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(PROJECT), *filter(None, [os.environ.get("PYTHONPATH")])]
)

# Blocks without a language, such as drawings in docstrings, are shown as they are.
highlight_language = "none"

# The API reference.
viewcode_follow_imported_members = False
add_module_names = False
autodoc_member_order = "bysource"
autodoc_default_options = {"no-value": True}
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False

html_theme = "furo"
html_title = "refllm"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_show_copyright = False
html_copy_source = False

# Other sites are slow or refuse a program now and then: only an address that is gone is broken.
linkcheck_timeout = 15
linkcheck_retries = 2
linkcheck_workers = 4
linkcheck_anchors = False
linkcheck_rate_limit_timeout = 60
linkcheck_ignore = [r"https?://(localhost|127\.0\.0\.1|HOST).*"]


def setup(app: Sphinx) -> None:
    """Show requests and answers as they are: Pygments' lexer for HTTP wants whole messages."""
    app.add_lexer("http", TextLexer)
