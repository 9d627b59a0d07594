"""The shipped workflows, described as graphs."""
