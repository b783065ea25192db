"""What is registered and what a recipe says, in tables and as a schema."""
