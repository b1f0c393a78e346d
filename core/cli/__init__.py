"""The command line, one module per subject; ``core.__main__`` puts them together."""
