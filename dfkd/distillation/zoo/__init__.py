"""The objectives of distillation with data: one file each, formulas and published weights in its docstring."""
