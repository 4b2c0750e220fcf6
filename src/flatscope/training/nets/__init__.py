"""One file a network; each says its receptive field, so that tiles can be cut without seams."""
