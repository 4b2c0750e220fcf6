"""Electron micrographs with known truth: specimens, movies, noise, and the appearance of one experimental image."""
