"""Tools that bring data sets into the form that configs expect."""
