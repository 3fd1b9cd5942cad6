"""`zmqrt top`: a live picture of one fleet, through one or several brokers."""
