"""Small tools for looking at configs."""
