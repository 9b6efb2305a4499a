"""What the personalisation study says: rows of its cells in; means, paired differences, tables and charts out."""
