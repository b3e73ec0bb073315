"""fedsens beside other ways to do the same: other libraries, other protocols."""
