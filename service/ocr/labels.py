"""Labels that the public model gives to the parts of a page, as far as they matter here; a model may give others."""

from __future__ import annotations

FIGURES = frozenset({"image", "figure", "chart", "picture"})
FIGURE_CAPTIONS = frozenset({"image_caption", "figure_caption"})
REPEATED = ("header", "footer", "page_number")
"""What is printed on every page; a client can have it left out."""
FOOTNOTES = frozenset({"page_footnote", "footnote"})
