"""The one place that knows ComfyUI's internals.

`scope` makes gradients right, `loading` loads models for a run, `sampling` and `decoding` are
M(z), `refusals` says what cannot be had, `progress` reports, `demo_model` builds the demo model.
"""
