"""Hooks of the documentation's build.

Links to the READMEs below ``results/`` work in the repository as they are written, and are changed
to links to the pages that the site makes of these files.

The theme draws Mermaid diagrams with a script from a content delivery network unless the page has
loaded one. This site loads nothing from elsewhere: the script is taken from the npm package
``mermaid`` (in the folder ``MERMAID``, or ``node_modules``), and becomes part of the site. The
theme's request for the repository's stars at GitHub is switched off for the same reason.
"""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

SCRIPT = "javascripts/mermaid.min.js"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Have every page load the site's own copy of the script."""
    config.extra_javascript.append(SCRIPT)
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the script to the site."""
    folder = Path(os.environ.get("MERMAID", "node_modules"))
    source = folder / "mermaid/dist/mermaid.min.js"
    if not source.is_file():
        raise PluginError(
            f"{source} is missing; `npm install --no-save mermaid@11` in the checkout gets it"
        )
    files.append(File.generated(config, SCRIPT, abs_src_path=str(source.resolve())))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links to ``results/NAME/README.md`` at the site's page of that file."""
    folder = posixpath.dirname(page.file.src_uri)

    def site_link(match: re.Match[str]) -> str:
        return f"]({posixpath.relpath(f'results/{match[1]}.md', folder or '.')}"

    return re.sub(r"\]\((?:\.\./)+results/(\w+)/README\.md", site_link, markdown)


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Remove the mark by which the theme's script finds the repository to ask GitHub about."""
    return output.replace(' data-md-component="source"', "")
