"""The command line: one file a command, each a thin user of dtrain's Python functions."""
