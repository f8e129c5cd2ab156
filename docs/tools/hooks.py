"""Hooks of the documentation's build.

Links work in the repository as they are written. Links to the READMEs below ``results/``, and full
addresses of pages of this site, which generated pages need, become relative links. The strict build
checks those.

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
    """Make links to ``results/NAME/README.md`` and to addresses of this site relative."""
    folder = posixpath.dirname(page.file.src_uri) or "."

    def result_link(match: re.Match[str]) -> str:
        return f"]({posixpath.relpath(f'results/{match[1]}.md', folder)}"

    def site_link(match: re.Match[str]) -> str:
        return f"]({posixpath.relpath(f'{match[1]}.md', folder)}"

    markdown = re.sub(r"\]\((?:\.\./)+results/(\w+)/README\.md", result_link, markdown)
    site = re.escape((config.site_url or "").rstrip("/"))
    return re.sub(rf"\]\({site}/([\w/-]+)/(?=[#)])", site_link, markdown)


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Remove the mark by which the theme's script finds the repository to ask GitHub about."""
    return output.replace(' data-md-component="source"', "")
