"""The revisions, one file each; a revision that was released never changes."""
