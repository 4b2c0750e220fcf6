"""One short file a command: it parses, runs and says where the answer lies."""
