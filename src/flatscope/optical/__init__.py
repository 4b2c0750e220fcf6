"""The light-microscope wing: know the optics, make pictures with known truth, measure real ones."""
