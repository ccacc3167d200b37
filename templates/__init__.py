"""The five tasks of DiffSynth as job files, and a Makefile for a folder of videos."""
