"""The subcommands of `zoo` that `export` brings, one file each."""
