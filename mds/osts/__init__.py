"""The OSTs as the MDS sees them: which live, which get new files, which copies are good, what may go."""
