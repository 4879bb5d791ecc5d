"""Is an engine the model that was trained? Inputs, comparison, budgets and reports."""
