"""The demo: a small network and the digits to train it on, for `petra-deploy demo`."""
