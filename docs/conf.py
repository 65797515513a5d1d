"""The web site: `make site` builds it from the repository's own pages. Nothing is executed.

The source folder is the repository, so that a link between files means on the site what it means in the repository.
"""

import json
import os
import sys
from collections import defaultdict
from pathlib import Path

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx

import nppkit

ROOT = Path(__file__).parents[1]
project = "nppkit"
author = copyright = "nppkit contributors, MIT licence"
release = nppkit.__version__
extensions = ["myst_nb", "sphinx.ext.autodoc"]

root_doc = "docs/index"
include_patterns = ["docs/**", "notebooks/*.ipynb"]
exclude_patterns = [".*", "build", "checkpoints", "results", "weights", "data", "tests", "screenshots", "nppkit", "docs/colab"]
suppress_warnings = ["myst.xref_missing"]  # a link to a folder is dealt with below

nb_execution_mode = "off"
nb_render_markdown_format = "gfm"  # tables that a notebook has written as Markdown
nb_code_prompt_show, nb_code_prompt_hide = "Show the code", "Hide the code"
nb_ipywidgets_js = {}  # no live widgets on a page, and nothing from elsewhere
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
default_role = "code"
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
python_maximum_signature_line_length = 90

CODE_IS_THE_SUBJECT = ("start_here", "npp_in_your_model", "tokenize", "train", "evaluate")
REPOSITORY = os.environ.get("GITHUB_REPOSITORY", "")  # owner/name, where a workflow builds the site
WEB = f"https://github.com/{REPOSITORY}"
html_theme = "sphinx_book_theme"
html_title = "Next Patch Prediction: a compendium"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_js_files = ["enlarge.js"]
html_copy_source = html_show_sourcelink = html_show_sphinx = False
html_theme_options = {
    "show_navbar_depth": 1,
    "use_download_button": False,
    "use_fullscreen_button": False,
    "navbar_persistent": [],
    "secondary_sidebar_items": {"docs/*": ["page-toc.html"], "notebooks/*": []},
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
if REPOSITORY:
    html_theme_options |= {"repository_url": WEB, "repository_branch": "HEAD", "use_repository_button": True}
    html_theme_options["launch_buttons"] = {"binderhub_url": "https://mybinder.org", "notebook_interface": "jupyterlab"}


def write_api(app: Sphinx) -> None:
    """docs/api.md: every public name, under the module that it lives in."""
    homes = defaultdict(list)
    for name in nppkit.__all__:
        value = getattr(nppkit, name)
        holders = (m for m in sorted(sys.modules) if m.startswith("nppkit.") and name in vars(sys.modules[m]))
        homes[getattr(value, "__module__", "") or next(holders)].append(name)  # a table of names has no module
    others = "for [other people's models](other_models.md), the modules `nppkit.hugging_face` and `nppkit.llamagen`"
    lines = ["# API", "", f"*What `from nppkit import ...` offers, and, {others}; everything else may change.*", ""]
    for home, names in sorted(homes.items(), key=lambda item: item[0] == "nppkit.errors"):  # the method first
        lines += [f"## {home}", "", sys.modules[home].__doc__.splitlines()[0], "", "```{eval-rst}"]
        for value, name in ((getattr(nppkit, name), name) for name in names):
            if isinstance(value, dict):
                lines += [f".. py:data:: {home}.{name}", "", f"   {', '.join(f'``{key}``' for key in value)}", ""]
            elif isinstance(value, type):
                lines += [f".. autoclass:: {home}.{name}", "   :members:", ""]
            else:
                lines += [f".. autofunction:: {home}.{name}", ""]
        lines += ["```", ""]
    (ROOT / "docs/api.md").write_text("\n".join(lines))


def short_signature(
    app: Sphinx, what: str, name: str, value: object, options: object, signature: str, result: str
) -> tuple | None:
    """A preset's checked types would fill a page: its keys stand in the YAML files."""
    return ("(...)", None) if "Annotated" in (signature or "") else None


def fold_code(app: Sphinx, page: str, source: list[str]) -> None:
    """On pages of results the code is folded, and parameters and versions come last. Where the code is the subject it stays."""
    if not page.startswith("notebooks/") or Path(page).name in CODE_IS_THE_SUBJECT:
        return
    notebook = json.loads(source[0])
    title, *others = notebook["cells"]
    if "".join(others[1]["source"]).startswith("The parameters are checked"):
        heading = {"cell_type": "markdown", "id": "how", "metadata": {}, "source": "## How this page was made"}
        notebook["cells"] = [title, *others[3:], heading, *others[:3]]
    for cell in notebook["cells"]:
        tags = cell["metadata"].get("tags", [])
        if cell["cell_type"] == "code":
            cell["metadata"]["tags"] = [*tags, "hide-cell" if "parameters" in tags else "hide-input"]
    source[0] = json.dumps(notebook)


def repair(app: Sphinx, doctree: nodes.document) -> None:
    """Links to files that are no pages lead to the repository, where it is known; figures of notebooks get alternative texts."""
    here = (ROOT / app.env.docname).parent
    for link in [*doctree.findall(addnodes.download_reference), *doctree.findall(addnodes.pending_xref)]:
        target = (here / link["reftarget"].partition("#")[0]).resolve()
        if link.get("refdoc") and target.exists() and target.is_relative_to(ROOT) and not is_page(app, target):
            link.replace_self(elsewhere(target, link))
    for link in doctree.findall(nodes.reference):  # of tables that a notebook has written
        if (uri := link.get("refuri", "")).endswith(".ipynb") and ":" not in uri:
            link["refuri"] = uri.removesuffix(".ipynb") + ".html"
    said = ""
    for node in doctree.findall(lambda n: isinstance(n, nodes.paragraph | nodes.title | nodes.image)):
        if not isinstance(node, nodes.image):
            said = node.astext() or said
        elif not node.get("alt"):
            node["alt"] = f"Figure: {' '.join(said.split())}"


def is_page(app: Sphinx, target: Path) -> bool:
    """Whether the site has a page for that file."""
    return str(target.relative_to(ROOT).with_suffix("")) in app.env.found_docs


def elsewhere(target: Path, link: nodes.Element) -> nodes.Element:
    """A link into the repository, or the words alone; the README is the first page."""
    words = [nodes.literal("", child.astext()) if isinstance(child, nodes.literal) else child for child in link.children]
    if REPOSITORY:
        kind = "tree" if target.is_dir() else "blob"
        return nodes.reference("", "", *words, refuri=f"{WEB}/{kind}/HEAD/{target.relative_to(ROOT)}")
    return nodes.inline("", "", *words)


def first_page(app: Sphinx, error: Exception | None) -> None:
    """The site's address without a page leads to the first one."""
    if error is None:
        page = '<!doctype html><html lang="en"><title>nppkit</title><meta http-equiv="refresh" content="0; url=docs/index.html">'
        (Path(app.outdir) / "index.html").write_text(page + '<p><a href="docs/index.html">Next Patch Prediction</a></p></html>\n')


def setup(app: Sphinx) -> None:
    app.connect("builder-inited", write_api)
    app.connect("autodoc-process-signature", short_signature)
    app.connect("source-read", fold_code)
    app.connect("doctree-read", repair)
    app.connect("build-finished", first_page)
