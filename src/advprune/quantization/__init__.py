"""Networks of integers: rounding after training, and training through integers."""
