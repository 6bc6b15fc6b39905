"""What the bigger commands do."""
