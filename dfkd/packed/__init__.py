"""Packed images: a folder of image files as one LMDB file of encoded images, read in blocks and decoded in worker processes.

`pack.pack` writes the file, `file.PackedFile` reads it, `source.packed_source` gives it to `dfkd prepare`.
"""
