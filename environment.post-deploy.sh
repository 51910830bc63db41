# Run by `snakemake --sdm conda` after it has made the environment: the package itself, from this checkout.
python -m pip install --no-deps --editable .
