"""The embedded data set: icons and emoji with their names, built on the user's machine from pinned wheels."""
