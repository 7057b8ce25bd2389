"""``python -m raycompose``: the command line."""

# The folder raycompose/cli, under the name that it is installed by.
from raycompose_cli import main  # type: ignore[import-not-found, unused-ignore]

if __name__ == "__main__":
    main()
