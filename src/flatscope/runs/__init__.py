"""Runs: what each verb does with many inputs, resumably and without a terminal, for commands, servers and notebooks."""
