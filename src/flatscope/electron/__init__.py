"""The electron-microscope wing: crystals, images of them with known truth, and what real images show."""
