"""What the user sees: overlays, thumbnails and one self-contained page."""
