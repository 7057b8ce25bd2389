"""A module that is there, but fails while importing."""

import a_package_that_is_not_installed  # type: ignore[import-not-found]

app = a_package_that_is_not_installed.app
