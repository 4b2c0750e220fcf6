"""`python -m flatscope`: the command line, where its script is not on the path."""

from flatscope.app.cli import main

if __name__ == "__main__":
    main()
