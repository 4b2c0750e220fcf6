"""Runs: what each verb does with many inputs, resumably and without a terminal; commands, servers and notebooks call it."""
