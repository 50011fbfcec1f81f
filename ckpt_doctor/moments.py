"""Arrays to count, mean and summed squares, in float64, mergeable."""
