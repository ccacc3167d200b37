"""What makers of the project run."""
