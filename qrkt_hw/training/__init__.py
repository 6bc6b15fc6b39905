"""Training with Lightning: module, callbacks, the loop."""
