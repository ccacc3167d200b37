"""The job: its model, reading job files, and messages about mistakes in them."""
