"""Data sets: sources (torchvision, scikit-learn's digits, image folder, HDF5) become one prepared HDF5 file.

`prepare.prepare` runs the stage; `prepared` reads and writes its file; `dfkd.config.SOURCES` is where a source is added.
Nothing is imported here, so that `info.DatasetInfo` costs no import of torch.
"""
