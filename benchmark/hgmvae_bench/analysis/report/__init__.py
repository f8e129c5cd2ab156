"""Report of a results folder as one HTML file.

The file opens from disk and loads nothing from elsewhere: style, script and images are part of it,
and its Content-Security-Policy allows nothing else. The template escapes every value. `build`
assembles the page, `findings`, `runs` and `provenance` collect its content, and `layout` arranges
tables for the template.
"""

from hgmvae_bench.analysis.report.build import ALL_INPUTS, build_report

__all__ = ["ALL_INPUTS", "build_report"]
