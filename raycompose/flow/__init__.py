"""What travels between stages."""
