"""The workbench: one run in the browser, served to this computer alone (extra: serve)."""
