"""What a training run is made of: update rules, parameter groups, loss, schedule, batches."""
