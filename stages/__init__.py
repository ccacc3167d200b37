"""What a frame goes through: extract, control, render, deflicker."""
