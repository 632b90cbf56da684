"""Code of the bundle; needs torch and monai alone."""
