"""From images and machine to the settings of a run, each with its reason, and what the run will take."""
