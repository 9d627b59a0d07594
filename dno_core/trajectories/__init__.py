"""What a run leaves behind, in memory and as a file, and how it is gone on with."""
