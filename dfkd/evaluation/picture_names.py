"""What an evaluation draws of each run: name of the PNG, its title. Imports nothing: the Snakefile reads it."""

EVALUATION_PICTURES = {
    "confusion": "confusion matrices",
    "disagreement": "where student and teacher disagree",
    "reliability": "reliability",
    "classes": "accuracy by class",
    "features": "features, t-SNE",
    "boundary": "distance to the boundary",
}
