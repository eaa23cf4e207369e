"""What a training loop needs around the method: schedules, optimizer, moving average, checkpoints, health."""
