"""What the generation study says: rows of its cells in; means, paired differences, tables, charts and drawings out."""
