"""Running sessions: what the browser and a running sampler tell each other."""
