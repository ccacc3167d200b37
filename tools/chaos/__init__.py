"""Disturb a job in every way that a long night can, and compare its bytes with those of an undisturbed run."""
