"""Settings of Sphinx: `make docs` builds the pages into docs/_build/html."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / 'extension'))
sys.path.insert(0, str(Path(__file__).parents[1]))

import sift_mm  # noqa: E402

project = 'sift_mm'
author = 'The authors of sift_mm'
release = sift_mm.__version__
html_title = f'sift_mm {release}'

extensions = [
    'myst_parser',
    'sphinx.ext.autodoc',
    'sphinx.ext.napoleon',
    'generated',
]
exclude_patterns = ['_build', 'scripts']
myst_enable_extensions = ['deflist']
myst_heading_anchors = 3

autodoc_typehints = 'none'  # The docstrings name the types.
autodoc_member_order = 'bysource'
autodoc_default_options = {'members': True, 'show-inheritance': True}
napoleon_use_rtype = False

html_theme = 'furo'
html_static_path = ['static']
html_css_files = ['site.css']
html_copy_source = False
pygments_style = 'friendly'
