"""The command line: options -> one frozen config -> one call -> a summary."""
