"""The subcommands of `zoo`, a file for each: `add` declares the arguments, the rest imports and runs."""
