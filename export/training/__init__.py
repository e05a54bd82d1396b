"""Recipes that train small models of the reference modules on a CPU."""
