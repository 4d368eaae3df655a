"""One file per method; a stack of them is a list."""
