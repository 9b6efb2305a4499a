"""The coordinator: never sees pixels."""
