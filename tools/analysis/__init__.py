"""Tools for looking at data and results."""
