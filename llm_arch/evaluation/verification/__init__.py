"""The contract of a model and its data, one check a file. A new check is a new file here; see `base.Check`."""
