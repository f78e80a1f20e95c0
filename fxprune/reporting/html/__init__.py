"""The report as one self-contained page: no network, every chart with its numbers in a table.

Charts are matplotlib's, embedded as SVG: they need no script, stay sharp, follow light and dark through style
sheets, and add tens of kilobytes where a scripted library would add megabytes and ask for rights that the
page's policy refuses.
"""

from fxprune.reporting.html.report_page import page, write_html

__all__ = ["page", "write_html"]
