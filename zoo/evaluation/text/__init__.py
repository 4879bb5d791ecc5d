"""How well models of texts rank each category, clean and under attack, beside a baseline in the same run."""
