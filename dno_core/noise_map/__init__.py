"""The map M(z): from noise to latent, and the pull back."""
