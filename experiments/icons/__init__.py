"""Drawings of the embedded data sets: icons by what they show, read from pinned wheels on the user's machine."""
