"""Reports of the commands: numbers, and their text."""
