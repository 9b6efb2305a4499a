"""Plans and updates as messages."""
