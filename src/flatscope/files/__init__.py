"""Reading pictures and writing answers.

`read` opens pictures, `annotations` label images and outlines, `write` puts bytes on the disk whole or not at all.
"""
