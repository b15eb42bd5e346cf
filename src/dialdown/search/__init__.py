"""The search over training-free edits."""
