"""What is timed: one process for each competitor, driven through pipes by the scripts one folder up."""
