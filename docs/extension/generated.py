"""Directives that put Markdown from the code into a page.

* ``mask-options``: the options of mask training.
* ``command-line NAME``: a command with its options.
* ``registered MODULE.NAME``: the classes in a registry.
"""

import re
from collections.abc import Callable
from typing import Any

from docutils import nodes
from reference import write_command, write_options, write_registry
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


class Generated(SphinxDirective):
    """Directive with Markdown from the code, read anew in every build."""

    write: Callable[..., str]

    def run(self) -> list[nodes.Node]:
        """Return the nodes of the Markdown."""
        self.env.note_reread()
        return self.parse_text_to_nodes(self.write(*self.arguments))


class MaskOptions(Generated):
    """Options of mask training."""

    write = staticmethod(write_options)


class CommandLine(Generated):
    """Options of a command."""

    required_arguments = 1
    write = staticmethod(write_command)


class Registered(Generated):
    """Table of the classes in a registry."""

    required_arguments = 1
    write = staticmethod(write_registry)


def escape_shapes(app: Sphinx, *arguments: Any) -> None:
    """Escape the star in a shape such as "(out, in, *kernel)", in place."""
    lines = arguments[-1]
    lines[:] = [re.sub(r', \*(\w+)\)', r', \\*\1)', line) for line in lines]


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directives."""
    app.add_directive('mask-options', MaskOptions)
    app.add_directive('command-line', CommandLine)
    app.add_directive('registered', Registered)
    app.connect('autodoc-process-docstring', escape_shapes)
    return {'parallel_read_safe': True}
