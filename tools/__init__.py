"""Command line tools of sift_mm, importable so that scripts share code."""
