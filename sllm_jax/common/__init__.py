"""What every room stands on: the one exception, files that appear whole or not at all, signals, progress, plots."""
