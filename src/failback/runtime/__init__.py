"""What every process needs and nothing of our subject: clock, configuration, service lifecycle, logs, fault points."""
