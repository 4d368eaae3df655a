"""What settings may be, apart from which there are."""
