"""The tasks, one file each: a settings class with `run(workdir)`, which a config builds."""
