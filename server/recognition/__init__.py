"""What the recognition study says: rows of its cells in; means, paired differences, drops, tables and charts out."""
