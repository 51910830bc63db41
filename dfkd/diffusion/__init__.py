"""Diffusion augmentation of an image bank: the back ends that make variations, and the fidelity filter that judges them."""
