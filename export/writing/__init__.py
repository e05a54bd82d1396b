"""The bundle's folder and files on disk: complete or not there, resumable."""
