"""The five tasks of DiffSynth as job files, one also for LCM, and a Makefile for a folder of videos."""
