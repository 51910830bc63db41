"""The image bank: one LMDB file of checked blocks of images. docs/bank-format.md describes every byte.

`format` says what a bank holds, `records` and `storage` how it lies on the disk; `writer`, `reader`, `merge` and `verify`
work on whole banks; `stats`, `lineage`, `grid`, `families`, `stages`, `terminal` and `difference` show them to people;
`convert` and what it names turn them into other formats and back. Nothing is imported here: `records`, `storage` and
`probe` stay free of torch.
"""
