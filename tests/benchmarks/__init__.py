"""``make bench``: what raycompose costs, as ratios measured in one run. See README.md here."""
