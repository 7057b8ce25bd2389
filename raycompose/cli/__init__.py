"""The command line: ``raycompose run hello:app``.

Installed as a package of its own, ``raycompose_cli``, so that ``--help`` answers without
importing Ray, which importing ``raycompose`` does.
"""

from .commands import main

__all__ = ["main"]
