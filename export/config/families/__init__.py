"""One file for each model family; see docs/add-a-family.md."""
