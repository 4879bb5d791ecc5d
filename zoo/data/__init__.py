"""Files of examples: manifests, splits, and the datasets that the zoo writes by itself."""
