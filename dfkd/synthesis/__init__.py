"""Making images from a teacher's weights alone: shared priors, and one file per way of synthesising."""
