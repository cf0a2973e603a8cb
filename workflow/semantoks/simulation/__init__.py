"""Parts of the simulated cohort: atlas, participants, brain dynamics, artefacts, confounds, files."""
