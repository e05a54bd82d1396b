"""A bundle as one file, with the wheels a device needs, and back."""
