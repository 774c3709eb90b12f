"""What a model is: for each family its config and its Linen modules."""
