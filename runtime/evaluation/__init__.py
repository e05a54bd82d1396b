"""How good a model is on texts and tasks, and how close to a reference: see evaluate.py."""
