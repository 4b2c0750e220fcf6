"""The command line: the only room with a terminal."""
