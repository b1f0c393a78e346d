"""The commands, one module per subject: arguments and progress bars only."""
