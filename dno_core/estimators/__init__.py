"""Gradient estimators: how d objective / d z is had. One more is one more file."""
