"""Tables and plots of sizes and their scores."""
