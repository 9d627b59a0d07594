"""How probable noise is: P(z), its bounds and permutations, and the regularizers."""
