"""A graph that cannot work."""

import raycompose as rc

app = rc.pipeline(lambda value: value, 42)
