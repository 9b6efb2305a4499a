"""What a study says: rows of a grid of cells in, means, paired differences, tables and charts out."""
