"""``python -m raycompose``: the command line."""

# The folder raycompose/cli, under the name that it is installed by.
from raycompose_cli import main

if __name__ == "__main__":
    main()
