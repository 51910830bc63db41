"""Training of teachers and students, and one file per objective."""
