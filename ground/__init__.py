"""Small things that every package may stand on. Nothing here imports the product's other packages."""
