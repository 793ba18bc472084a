"""Settings of the documentation site: python -m sphinx -W --keep-going -b html docs docs/_build."""

from headscope import __version__

project = "headscope"
author = "the headscope developers"
version = release = __version__
extensions = ["myst_parser"]
exclude_patterns = ["_build", "changes"]
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
myst_heading_anchors = 3
