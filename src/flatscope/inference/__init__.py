"""Run a trained network on a picture of any size, without torch."""
