"""Makes the embedded model: a painted world, networks trained on it from nothing, and how good they are."""
