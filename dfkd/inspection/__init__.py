"""Looking into banks with the teacher's eyes: scores of every image, selection, statistics, pages, the viewer."""
