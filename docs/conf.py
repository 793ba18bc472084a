"""Settings of the documentation site: python -m sphinx -W --keep-going -b html docs docs/_build."""

import sys
from pathlib import Path
from typing import Any

from headscope import __version__

project = "headscope"
author = "the headscope developers"
version = release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "_generated", "changes"]  # what is generated is included by the pages
default_role = "literal"  # docstrings mark code by single backticks
smartquotes = False  # texts quote what one types
html_theme = "furo"
pygments_dark_style = "github-dark"
html_title = "headscope"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_show_copyright = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0071b3", "color-brand-content": "#0071b3"},
    "dark_css_variables": {"color-brand-primary": "#5cb6ef", "color-brand-content": "#5cb6ef"},
}
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
autodoc_typehints = "none"  # signatures carry shapes; the text says what they mean
autodoc_member_order = "bysource"
napoleon_use_ivar = True
napoleon_attr_annotations = False
napoleon_custom_sections = [("Class facts", "params_style")]


def setup(app: Any) -> None:
    """Write the generated pieces before pages are read; a measure or score without a card ends the build."""
    here = Path(__file__).parent
    sys.path.insert(0, str(here))  # pages.py stands beside this file
    from pages import write_pages

    results = here / "coverage.csv", here / "benchmark.csv"
    app.connect("builder-inited", lambda _: write_pages(here / "_generated", *results))
