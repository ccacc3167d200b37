"""The shared floor: the job file, the frame cache, the engine. No torch here."""
