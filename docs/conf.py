"""The documentation's site: ``make docs``. Every page and every link works in the repository too.

Sphinx reads from the repository's root, so that pages can link experiments, tests and sources.
Public are the names in the ``__all__`` of packages that are not private. One without a docstring or
missing on the reference's pages is a warning, and ``make docs`` stops at warnings.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from docutils.nodes import Node, TextElement
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.logging import getLogger

import fedsens

project = "fedsens"
author = "the fedsens authors"
copyright = author
release = version = fedsens.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
root_doc = "docs/index"
include_patterns = ["docs/**.md", "docs/notebooks/*.ipynb", "experiments/**.md", "[A-Z]*.md"]
exclude_patterns = [
    ".[a-z]*",
    ".[a-z]*/**",
    "build",
    "dist",
    "runs",
    "docs/_build",
    "fedsens",
    "tests",
]
suppress_warnings = ["myst.header", "toc.not_included"]
nitpicky = True
nitpick_ignore_regex = [
    (r"py:.*", r"(?!fedsens\b).*"),  # other libraries' names
    (r"py:.*", r"fedsens\.bench\..*|.*\._terms\.(P|_known)|.*\._options\.Options"),
]

nb_execution_mode = "off"  # a test runs them; shown is what they keep
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "groupwise"
autodoc_class_signature = "mixed"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 88
napoleon_google_docstring = True
napoleon_use_ivar = True

highlight_language = "none"  # of blocks that name none: commands, tables, pictures

html_theme = "furo"
html_title = "fedsens"
html_show_sphinx = False
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["wide.css"]
html_theme_options = {"navigation_with_keys": True}

_log = getLogger(__name__)
_NO_PACKAGES = {"fedsens.cli"}  # commands
_MODULES = ("fedsens.config", "fedsens.errors", "fedsens.layout")  # public, and one file each


def _homes() -> Iterator[tuple[str, list[str]]]:
    """Every public module with its public names."""
    found = (each.name for each in pkgutil.walk_packages(fedsens.__path__, "fedsens."))
    for name in ("fedsens", *found):
        if name in _NO_PACKAGES or any(part.startswith("_") for part in name.split(".")):
            continue
        module = importlib.import_module(name)
        if hasattr(module, "__all__"):
            yield name, [each for each in module.__all__ if not each.startswith("__")]
        elif name in _MODULES:
            own = (each for each in vars(module).items() if not each[0].startswith("_"))
            yield name, [n for n, value in own if getattr(value, "__module__", "") == name]


def _defined(module: str, name: str) -> str:
    """The full name of a public name where it is defined."""
    value = getattr(importlib.import_module(module), name)
    home = getattr(value, "__module__", module)
    return f"{home}.{getattr(value, '__qualname__', name)}"


def _places() -> dict[str, list[str]]:
    """Every public object, by the name of where it is defined: all names that users know it by."""
    places: dict[str, list[str]] = {}
    for module, names in _homes():
        for name in names:
            value = getattr(importlib.import_module(module), name)
            if inspect.ismodule(value):
                continue
            own = inspect.isclass(value) or inspect.isroutine(value)
            defined = _defined(module, name) if own else name
            places.setdefault(defined, []).append(f"{module}.{name}")
    return places


_PLACES = _places()  # loads everything, before autodoc imports with TYPE_CHECKING set


def _comment(name: str) -> list[str]:
    """The ``#:`` comment above a public constant, in whichever private module it stands."""
    package, _, constant = name.rpartition(".")
    for each in pkgutil.iter_modules(importlib.import_module(package).__path__, f"{package}."):
        docs = ModuleAnalyzer.for_module(each.name).find_attr_docs()
        if ("", constant) in docs:
            return docs["", constant]
    return []


def _plain(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Take formulas as they are, and a colon in what is returned, which is not a type's."""
    for number, line in enumerate(lines):
        parts = line.split("``")
        parts[::2] = [re.sub(r"([|*])", r"\\\1", part) for part in parts[::2]]
        lines[number] = "``".join(parts)
        if number and lines[number - 1].strip() in {"Returns:", "Yields:"}:
            lines[number] = re.sub(r"^( +)", r"\1: ", lines[number])


def _describe(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Give constants the comment above them; a public name that says nothing is a warning."""
    if what == "data":
        lines[:] = _comment(name)
    if what in {"data", "class", "function", "exception"} and not any(lines):
        _log.warning("public name without a docstring: %s", name)


def _find(app: Sphinx, env: BuildEnvironment, node: pending_xref, text: TextElement) -> Node | None:
    """Resolve a reference to where an object is defined as one to where it is documented."""
    domain = env.domains.python_domain
    target = node.get("reftarget", "")
    known = ((defined, *names) for defined, names in _PLACES.items())
    found = [name for each in known if target in _short(each) for name in each]
    for name in (each for each in found if each in domain.objects):
        return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", name, node, text)
    return None


def _short(names: Iterable[str]) -> set[str]:
    """Names with and without their modules."""
    return {short for name in names for short in (name, name.rpartition(".")[2])}


def _complete(app: Sphinx, env: BuildEnvironment) -> list[str]:
    """A public name that no page of the reference documents is a warning."""
    documented = env.domains.python_domain.objects
    for names in _PLACES.values():
        if not any(name in documented for name in names):
            _log.warning("public name missing in the reference: %s", names[0])
    return []


def _start_page(app: Sphinx, error: Exception | None) -> None:
    """The folder's index leads to the first page."""
    page = '<meta http-equiv="refresh" content="0; url=docs/index.html">\n'
    (Path(app.outdir) / "index.html").write_text(page)


def setup(app: Sphinx) -> None:
    """What Sphinx calls with this file."""
    app.connect("autodoc-process-docstring", _plain, priority=400)  # before napoleon
    app.connect("autodoc-process-docstring", _describe, priority=600)
    app.connect("missing-reference", _find)
    app.connect("env-updated", _complete)
    app.connect("build-finished", _start_page)
