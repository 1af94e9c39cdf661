"""The commands of `trainer`: each parses its options, calls one function and prints."""
