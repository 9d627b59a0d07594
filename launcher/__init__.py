"""What run.py does, in standard-library Python: environment, ComfyUI, server, demo."""
