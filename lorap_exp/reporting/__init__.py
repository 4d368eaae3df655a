"""Results as values, and their views: tables, plots, tracking."""
