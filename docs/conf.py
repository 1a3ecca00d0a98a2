"""The site: `make docs` builds it in build/docs from the Markdown pages and the docstrings of the package.

The source folder is the whole checkout. A link from one page to another, or to a file of the code, is then the same
relative path on the site and on a code host.
"""

from pathlib import Path

import tomllib
from sphinx.domains.python import PyObject

ROOT = Path(__file__).resolve().parents[1]
with open(ROOT / "pyproject.toml", "rb") as _file:
    _project = tomllib.load(_file)["project"]

project = _project["name"]
version = release = _project["version"]
copyright = "the rope_ext authors"

root_doc = "README"
include_patterns = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "docs/**", "benchmarks/results/*.md"]
exclude_patterns = [".*", "build", "dist", "peers", "csrc", "rope_ext", "tests", "tools", "examples"]  # not searched
CONTENTS = {  # by caption, pages with the titles that they have in the sidebar
    "User guide": {
        "Install": "docs/install",
        "Usage": "docs/usage",
        "RoPE in pictures": "docs/guide",
        "Frequencies": "docs/frequencies",
        "Examples": "docs/examples",
        "From another library": "docs/migrate",
        "Distributed": "docs/distributed",
        "Deploy": "docs/deploy",
    },
    "Reference": {
        "API": "docs/api/index",
        "Exactness": "docs/exactness",
        "Performance": "docs/performance",
        "Memory": "docs/memory",
        "Tested versions": "docs/support",
        "Models of transformers": "docs/models",
        "Models of diffusers and timm": "docs/models_diffusers",
    },
    "Measurements": {
        "CPU": "benchmarks/results/cpu",
        "Small calls": "benchmarks/results/calls",
        "Compiled models": "benchmarks/results/compiled",
        "GPU machine code": "benchmarks/results/machine_code",
    },
    "Development": {
        "Architecture": "docs/architecture",
        "Norm in one pass": "docs/norm",
        "Contributing": "CONTRIBUTING",
        "Changelog": "CHANGELOG",
    },
}

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
myst_heading_anchors = 3  # the anchors of a code host, for links such as memory.md#threads

# Docstrings are in Google style. `name` in single backticks is code, and a link where the name is documented.
default_role = "py:obj"
napoleon_use_param = False  # one entry for "cos, sin:", instead of the same text for each name
napoleon_use_rtype = False
napoleon_use_ivar = True  # attributes are a list, and not documented twice
napoleon_attr_annotations = False  # signatures have the types
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
python_maximum_signature_line_length = 90
python_display_short_literal_types = True
toc_object_entries_show_parents = "hide"
smartquotes_action = "D"  # dashes; quotes stay straight, so that "bshd" can be copied
highlight_options = {"python": {"stripnl": True}}  # no empty lines around the parts of examples/

html_theme = "furo"
html_title = f"rope_ext {version}"
html_show_sphinx = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_extra_path = ["site"]  # index.html, which leads to the front page


def add_contents(app, docname, source):
    """Appends the table of contents to the front page: in README.md itself a code host would show it as code."""
    if docname == root_doc:
        for caption, pages in CONTENTS.items():
            entries = "\n".join(f"{title} <{page}>" for title, page in pages.items())
            source[0] += f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{entries}\n```\n"


def setup(app):
    app.connect("source-read", add_contents)
    for field in PyObject.doc_field_types:
        if field.name == "variable":
            field.label = "Attributes"  # rather than "Variables"
